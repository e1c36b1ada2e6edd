"""Rules: declared conditions over a transaction's features, and their effects on its decision."""
