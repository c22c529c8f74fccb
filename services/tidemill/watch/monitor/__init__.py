"""The monitor: predictions, examples and dead letters in; windows of figures and alerts out."""
