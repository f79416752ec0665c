"""Settings of Weights & Biases, read before torch is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class LoggingConfig:
    """Weights & Biases; ``history.csv`` is always written."""

    project: str = "lit_unlearn"
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto``: online if WANDB_API_KEY is set, else offline."""
