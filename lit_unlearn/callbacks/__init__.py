"""What happens around the training step: beliefs, the reference's cache, evaluation, the squeezing probe."""
