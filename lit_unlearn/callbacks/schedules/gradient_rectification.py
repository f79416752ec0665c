"""GRU: the forget gradient may not work against the retain gradient (https://arxiv.org/abs/2503.09117)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from lit_unlearn.callbacks.schedules.schedule import Schedule, check_terms
from lit_unlearn.parallel import all_reduce_sum, world_size
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.types import Terms


@dataclass(eq=False)
class GradientRectification(Schedule):
    r"""``g_f <- g_f - (<g_f, m> / <m, m>) m  if <g_f, m> < 0``, with ``m <- (1 - gamma) m + gamma g_r``.

    m is 0 at first. g_f and g_r are the gradients of the weighted forget and retain terms, over all ranks and before
    clipping; the inner product runs over all trainable weights together. Costs a second backward of the forget terms
    and two copies of the weights, of which m is in the checkpoint. Logged: ``train/gru_cosine``, of g_f and m before
    the projection, and ``train/gru_projected``, 1 or 0.
    """

    forget: list[str] = field(default_factory=lambda: ["forget"])
    """Terms whose gradient is rectified."""
    retain: list[str] = field(default_factory=lambda: ["retain"])
    """All other terms."""
    gamma: float = 0.8
    """Share of the newest retain gradient in m, as read in a public GRU trainer (``gamma_gru``); not checked against
    the paper. 1: no memory."""
    update: Literal["total", "forget"] = "total"
    """``total``: step along rectified g_f plus g_r; without conflict the plain step. ``forget``: along rectified g_f
    alone, the retain rows only guard it (the authors' code)."""

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma} must be in (0, 1]")
        if not self.forget or not self.retain or set(self.forget) & set(self.retain):
            raise ValueError(f"forget={self.forget} and retain={self.retain} must each name terms, and no common one")
        self.mean: dict[str, Tensor] = {}  # m, by name of the weight
        self.forget_grads: dict[str, Tensor] = {}  # g_f, from the backward to the optimizer's step

    @property
    def moves(self) -> str:
        return "the gradients"

    def check(self, terms: Terms, max_epochs: int) -> None:
        check_terms("forget", self.forget, terms)
        check_terms("retain", self.retain, terms)
        rest = set(terms) - {*self.forget, *self.retain}
        if rest:
            raise ValueError(f"add {', '.join(sorted(rest))} to forget or to retain: every term is one or the other")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        pl_module.apart = frozenset(self.forget)
        self.mean = {name: mean.to(pl_module.device) for name, mean in self.mean.items()}

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, UnlearnModule)
        weights = _trainable(pl_module)
        part = pl_module.loss_apart
        assert part is not None
        grads = torch.autograd.grad(part, list(weights.values()), retain_graph=True, materialize_grads=True)
        self.forget_grads = {
            name: all_reduce_sum(grad) / world_size() for name, grad in zip(weights, grads, strict=True)
        }

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        forget_grads, self.forget_grads = self.forget_grads, {}
        weights = {name: weight for name, weight in _trainable(pl_module).items() if weight.grad is not None}
        for name, weight in weights.items():
            assert weight.grad is not None
            retain = weight.grad - forget_grads[name]
            mean = self.mean.setdefault(name, torch.zeros_like(retain))
            mean.mul_(1 - self.gamma).add_(retain, alpha=self.gamma)
            if self.update == "forget":
                weight.grad.copy_(forget_grads[name])
        along = _dot(forget_grads, self.mean)
        square = _dot(self.mean, self.mean)
        projected = bool(along < 0)
        if projected:
            for name, weight in weights.items():
                assert weight.grad is not None
                weight.grad.sub_(along / square * self.mean[name])
        norms = (square * _dot(forget_grads, forget_grads)).sqrt()
        pl_module.log("train/gru_cosine", along / norms.clamp(min=1e-30), batch_size=1)
        pl_module.log("train/gru_projected", float(projected), batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.mean = state_dict["mean"]


def _trainable(module: L.LightningModule) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def _dot(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """Inner product over all weights that ``right`` has."""
    return torch.stack([(left[name] * right[name]).sum() for name in right]).sum()
