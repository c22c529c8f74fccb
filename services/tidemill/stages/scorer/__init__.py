"""The scorer: feature vectors and model versions in, predictions out."""
