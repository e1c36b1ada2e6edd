"""Exact windows over each user's history, at any event time."""
