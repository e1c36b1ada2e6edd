"""Scores, policy and reasons."""
