"""Decisions: from a score to a level, an alert and its reasons."""
