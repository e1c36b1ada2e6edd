"""The pipeline: batches of records in, effects out; no I/O and no clock."""
