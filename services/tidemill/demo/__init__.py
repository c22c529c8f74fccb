"""The demo: January's flights out of New York, replayed through the whole pipeline."""
