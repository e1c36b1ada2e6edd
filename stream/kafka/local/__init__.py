"""Brokers for development and tests on this machine."""
