"""Benchmarks of RiskStream on one machine; every result includes the environment in which it was measured."""
