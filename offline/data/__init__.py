"""Data: files of transactions and labels, their mappings, and their faults."""
