"""The feature store: views as tiles of event time, their state, the online store in Redis, and the look-ups of it."""
