"""A model on disk, what is said of it there, and its way to the Hub."""
