"""The learner: examples in, signed versions of one model out."""
