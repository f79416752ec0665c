"""Rows as tokens: encoding, batches, beliefs, alternate answers."""
