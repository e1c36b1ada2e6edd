"""The public contract: the events that cross the topics, and how their bytes are decoded."""
