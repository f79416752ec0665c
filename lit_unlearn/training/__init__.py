"""The training step, its optimizers and the Lightning trainer."""
