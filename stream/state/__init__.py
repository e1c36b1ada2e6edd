"""Keyed state: readers of stored records, their format, and hashes of ids. No I/O."""
