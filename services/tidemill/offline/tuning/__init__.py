"""Tuning: which values of a model's parameters do best on the examples that were, to be tried as challengers."""
