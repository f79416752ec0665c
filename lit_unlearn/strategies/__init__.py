"""How ranks share a step, and how weights that are cut in pieces are read."""
