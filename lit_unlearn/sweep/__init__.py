"""Many runs from one file: which they are, what they share, how they are started, here or by SLURM, and what came out."""
