"""Text signals: features from free text, for the scoring path."""
