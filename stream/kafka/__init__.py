"""Brokers that this machine can run, and the topics on any broker."""
