"""Feedback: labels joined with the decisions that they judge."""
