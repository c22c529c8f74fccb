"""What a model is: a fold over examples, its snapshot, its segments, and which of two is better."""

from tidemill import lean_river  # noqa: F401  before anything here imports River
