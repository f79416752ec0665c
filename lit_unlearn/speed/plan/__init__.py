"""What a model takes in memory, and which cards hold it."""
