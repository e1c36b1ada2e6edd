"""The commands of ``riskstream``, one module each."""
