"""Scoring: from features to a score, with a model bundle."""
