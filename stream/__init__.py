"""RiskStream: real-time transaction risk on Kafka."""

__version__ = "0.1.0"
