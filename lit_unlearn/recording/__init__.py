"""What a run leaves on disk and on Weights & Biases."""
