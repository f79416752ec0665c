"""Models whose weights stay in their files until they are cut: a skeleton first, then one piece after the other."""
