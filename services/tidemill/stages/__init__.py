"""The river: validator, featurizer, materializer, scorer, joiner, learner, gate; they know each other by topics alone."""
