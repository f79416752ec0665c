"""lit_unlearn: make language models forget what they must not know, and prove it."""

from lit_unlearn.notebook import step_loss

__all__ = ["step_loss"]
__version__ = "0.1.0"
