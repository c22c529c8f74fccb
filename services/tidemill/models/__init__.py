"""What a model is: a fold over examples, its snapshot, its segments, and which of two is better."""
