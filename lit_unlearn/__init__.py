"""lit_unlearn: make language models forget what they must not know, and prove it."""

from importlib import import_module
from typing import Any

__all__ = ["step_loss", "unlearn"]  # pyright: ignore[reportUnsupportedDunderAll]  found by __getattr__
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``unlearn`` or ``step_loss`` when first asked for: torch takes seconds, which commands need not wait."""
    if name in __all__:
        return getattr(import_module("lit_unlearn.notebook"), name)
    raise AttributeError(f"module 'lit_unlearn' has no attribute {name!r}")
