"""What an ML engineer writes: one Python file that declares a pipeline. Each declaration checks itself."""

from tidemill import lean_river  # noqa: F401  before anything here imports River
