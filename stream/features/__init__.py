"""Features: exact windows over each user's history, and the model's input vectors."""
