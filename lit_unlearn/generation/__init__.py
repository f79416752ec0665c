"""Answers of a model: greedy, sampled, by beams."""
