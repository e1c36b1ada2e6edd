"""Hostile inputs for what reads bytes: the decoder of records and the reader of stored histories."""
