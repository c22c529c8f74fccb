"""The registry: signed manifests on a topic, content-addressed artifacts in a store, and the checks of both."""

from tidemill import lean_river  # noqa: F401  before anything here imports River
