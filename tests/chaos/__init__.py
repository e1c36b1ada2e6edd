"""Faults on a real stream: Apache Kafka, real workers, seeded faults, and a checker of its own.

``make chaos`` runs it at length (``__main__``), ``test_rounds.py`` a fixed part of it.
"""
