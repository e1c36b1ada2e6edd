"""entity_join."""
