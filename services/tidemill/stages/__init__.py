"""The river: validator, featurizer, materializer, scorer, joiner, learner, gate. They meet through topics alone."""
