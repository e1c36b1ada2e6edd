"""Training: splits in time, imbalance, tuning, and the bundle."""
