"""Helpers that several suites share: oracles, deployments, brokers, bundles."""
