"""The memory of a run in closed form, before it is run."""
