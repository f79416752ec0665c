"""The dual weight of PDU's retain constraint (Entesari et al., 2025, https://arxiv.org/abs/2506.05314)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import lightning as L

from lit_unlearn.callbacks.schedules.schedule import Schedule, check_terms
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.types import Terms


@dataclass(eq=False)
class DualWeight(Schedule):
    r"""``lambda = max(0, lambda + step_size * (L_r - eps))``: ascent on the dual of ``min L_f s.t. L_r <= eps``.

    The constraint ``L_r - eps`` is the value of the term itself (``constraint_nll`` subtracts its eps), the mean over
    the rows of all ranks, so every rank takes the same step; OpenUnlearning's ranks each follow their own rows.
    lambda starts at the term's weight; the one each step trains with is logged as ``train/<term>_weight``.
    """

    term: str = "retain"
    """The constraint, e.g. a term with ``constraint_nll``."""
    step_size: float = 1.0
    """OpenUnlearning's default; 5 for TOFU in its README."""
    warmup_epochs: int = 0
    """lambda rests during the first epochs; OpenUnlearning's config has 5."""
    every: Literal["step", "epoch"] = "step"
    """Move after each step, or at the end of an epoch by the mean over its steps."""

    def __post_init__(self) -> None:
        if self.step_size <= 0 or self.warmup_epochs < 0:
            raise ValueError(
                f"step_size={self.step_size} must be above 0, warmup_epochs={self.warmup_epochs} not negative"
            )
        self.weight: float | None = None  # lambda; None until the run starts
        self.seen: list[float] = []  # constraint of each step of the epoch, for ``every: epoch``

    @property
    def moves(self) -> str:
        return f"the weight of term {self.term}"

    def check(self, terms: Terms, max_epochs: int) -> None:
        check_terms("term", [self.term], terms)
        if self.warmup_epochs >= max_epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be below the run's {max_epochs} epochs")

    @property
    def state_key(self) -> str:
        return self._generate_state_key(term=self.term)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        if self.weight is None:
            self.weight = pl_module.weights[self.term]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        assert self.weight is not None
        pl_module.weights[self.term] = self.weight  # of a resumed run: where it had come to, known by now to all

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch, batch_idx) -> None:
        assert self.weight is not None
        pl_module.log(f"train/{self.term}_weight", self.weight, batch_size=1)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch < self.warmup_epochs:
            return
        self.seen.append(trainer.callback_metrics[f"train/{self.term}_loss"].item())
        if self.every == "step":
            self._ascend(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.seen:
            self._ascend(pl_module)

    def _ascend(self, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        assert self.weight is not None
        constraint = sum(self.seen) / len(self.seen)
        self.weight = pl_module.weights[self.term] = max(0.0, self.weight + self.step_size * constraint)
        self.seen = []

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weight, self.seen = state_dict["weight"], state_dict["seen"]
