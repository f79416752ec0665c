"""lit_unlearn: make language models forget what they must not know, and prove it."""

from importlib import import_module
from typing import Any

__all__ = ["step_loss"]  # pyright: ignore[reportUnsupportedDunderAll]  found by __getattr__
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``step_loss`` when it is first asked for: torch and transformers take seconds, which commands need not wait."""
    if name == "step_loss":
        return import_module("lit_unlearn.notebook").step_loss
    raise AttributeError(f"module 'lit_unlearn' has no attribute {name!r}")
