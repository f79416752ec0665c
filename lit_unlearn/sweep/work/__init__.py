"""Points at work: one in its process, several here, all of them under SLURM."""
