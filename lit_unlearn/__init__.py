"""lit_unlearn: make language models forget what they must not know, and prove it."""

__version__ = "0.1.0"
