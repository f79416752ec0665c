"""The frozen start: what is computed of it beforehand, and where that is kept."""
