"""A term that fades out: the annealed forget weight of TARF (https://arxiv.org/abs/2406.08288)."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L

from lit_unlearn.callbacks.schedules.schedule import Schedule, check_terms
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.types import Terms


@dataclass(eq=False)
class Anneal(Schedule):
    r"""``k(t) = max(k (T - t - t0) / T, 0)`` takes the place of the term's weight; t counts epochs, fractional by step.

    The weight each step trains with is logged as ``train/<term>_weight``.
    """

    k: float
    """Slope of the fading weight, which starts at k (T - t0) / T; the paper names no value, .1-.2 is a start."""
    term: str = "forget"
    offset_epochs: float = 0.0
    """t0: the weight is 0 this many epochs before T."""
    total_epochs: float | None = None
    """T; null: the length of the run."""

    def __post_init__(self) -> None:
        if self.k <= 0 or self.offset_epochs < 0:
            raise ValueError(f"k={self.k} must be above 0, offset_epochs={self.offset_epochs} not negative")
        if self.total_epochs is not None and self.total_epochs <= self.offset_epochs:
            raise ValueError(
                f"total_epochs={self.total_epochs} must be above offset_epochs={self.offset_epochs}, "
                "or the weight is 0 from the start"
            )

    @property
    def moves(self) -> str:
        return f"the weight of term {self.term}"

    def check(self, terms: Terms, max_epochs: int) -> None:
        check_terms("term", [self.term], terms)
        if self.total_epochs is None and self.offset_epochs >= max_epochs:
            raise ValueError(
                f"offset_epochs={self.offset_epochs} must be below the run's {max_epochs} epochs, "
                "or the weight is 0 from the start"
            )

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch, batch_idx) -> None:
        assert isinstance(pl_module, UnlearnModule)
        steps_per_epoch = int(trainer.num_training_batches)
        total = self.total_epochs or trainer.estimated_stepping_batches / steps_per_epoch
        weight = self.weight_at(trainer.global_step / steps_per_epoch, total)
        pl_module.weights[self.term] = weight
        pl_module.log(f"train/{self.term}_weight", weight, batch_size=1)

    def weight_at(self, epoch: float, total_epochs: float) -> float:
        """k(t) at t = ``epoch``."""
        return max(self.k * (total_epochs - epoch - self.offset_epochs) / total_epochs, 0.0)
