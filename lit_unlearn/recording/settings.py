"""Settings of Weights & Biases, read before torch is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

MAX_TAG = 64
"""Longest tag that W&B takes, in characters."""
MAX_PROJECT = 128
_NOT_IN_PROJECTS = "/\\#?%:"


@dataclass
class LoggingConfig:
    """Weights & Biases; ``history.csv`` is always written."""

    project: str = "lit_unlearn"
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto``: online if WANDB_API_KEY is set, else offline."""
    group: str | None = None
    """W&B runs shown together; null: the run's own name, which holds its unlearning and its finetunings together."""
    tags: list[str] = field(default_factory=list)
    """Beside those for method, model and benchmark."""
    gradient_shares_every_n_steps: int = 0
    """Log each term's share in the gradient: the norm of its own weighted gradient and the cosine of that with the
    whole. Costs a backward of each term and a copy of the gradient in those steps; 0: never."""

    def __post_init__(self) -> None:
        if not 0 < len(self.project) <= MAX_PROJECT or set(self.project) & set(_NOT_IN_PROJECTS):
            raise ValueError(
                f"logging.project={self.project!r}: W&B takes 1 to {MAX_PROJECT} characters, none of {_NOT_IN_PROJECTS}"
            )
        if bad := [tag for tag in self.tags if not 0 < len(tag) <= MAX_TAG]:
            raise ValueError(f"logging.tags: {bad[0]!r} has {len(bad[0])} characters; W&B takes 1 to {MAX_TAG}")
        if self.gradient_shares_every_n_steps < 0:
            raise ValueError(
                f"logging.gradient_shares_every_n_steps={self.gradient_shares_every_n_steps} must not be negative"
            )
