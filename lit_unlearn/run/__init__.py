"""Puts a run together and tells what came of it."""
