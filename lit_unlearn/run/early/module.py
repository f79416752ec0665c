"""A training step that moves nothing, and names the term that fails."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from lit_unlearn.engine.body import evaluating
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.models.adapters.lora import has_adapters
from lit_unlearn.reference.plan import reference_states
from lit_unlearn.run.early.untouched import told
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.types import Batch


class Rehearsed(UnlearnModule):
    """A step that moves nothing; the policy is its own start, so no second model and no store are needed."""

    is_trained = False
    """Whether this model is the one that the run trains, so that its losses are those of the first step."""

    @contextmanager
    def start(self) -> Iterator[ScoringEngine | None]:
        if has_adapters(self.engine.model):
            with super().start() as engine:
                yield engine
            return
        with evaluating(self.engine):
            yield self.engine

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        try:
            return super().training_step(batch, batch_idx)
        except UserError:
            raise
        except Exception:
            for name, term in self.terms.items():
                with told(f"terms.{name}"), self.start() as engine:
                    reference = reference_states(batch, term.objective.needs.reference, engine)
                with told(f"terms.{name}"):
                    self.engine(batch, {name: term}, reference)
            raise

    def backward(self, loss: Tensor, *args: object, **kwargs: object) -> None:
        with told("the backward of the terms"):
            super().backward(loss, *args, **kwargs)

    def configure_optimizers(self):
        return _Still([weight for weight in self.engine.parameters() if weight.requires_grad])

    def cpu(self) -> Rehearsed:
        """Lightning would carry the weights to the host, where they are thrown away."""
        return self

    def _refuse_non_finite(self, losses: Mapping[str, float], batch: Batch) -> None:
        for name, loss in losses.items():
            if self.is_trained and not math.isfinite(loss):
                raise UserError(f"terms.{name}: the loss is {loss} on the first rows, before any step")


class _Still(torch.optim.Optimizer):
    """Asks for the gradient and does not follow it."""

    def __init__(self, weights: list[torch.nn.Parameter]) -> None:
        super().__init__(weights, {"lr": 0.0})

    def step(self, closure=None):  # type: ignore[override]
        with torch.enable_grad():
            return None if closure is None else closure()
