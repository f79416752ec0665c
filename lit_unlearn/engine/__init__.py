"""The scoring engine: rows in, log-probs and gradients out, every distinct token once."""
