"""Control messages: versioned changes to rules, thresholds and models, consumed from ``risk-control``."""
