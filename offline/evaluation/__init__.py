"""Evaluation: week after week as labels arrive, against baselines and other models."""
