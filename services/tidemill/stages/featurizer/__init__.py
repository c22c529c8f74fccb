"""The featurizer: valid events in, feature vectors out, and the entities' features in Redis."""
