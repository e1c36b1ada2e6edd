"""Features: events and state become the input of a model."""
