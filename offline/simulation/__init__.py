"""Simulation: made-up users, merchants and known frauds."""
