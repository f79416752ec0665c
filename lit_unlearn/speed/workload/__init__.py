"""What is timed: rows, models, the plain recipe and ours."""
