"""One rule how weights are reached outside a training step: whole, between one gather and its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_unlearn.engine.scoring import ScoringEngine


class Sharded(ABC):
    """A strategy whose weights lie in pieces between the steps."""

    @abstractmethod
    def whole(self, models: Sequence[nn.Module]) -> AbstractContextManager[None]:
        """Every rank holds all weights of ``models`` for the body, and may run them as often as it likes."""

    @abstractmethod
    def cut(self, engine: ScoringEngine) -> None:
        """Leave on this rank its pieces of the weights; of those that are in their files still, only the memory.

        What has its weights may be left to be cut later.
        """

    @abstractmethod
    def begin(self, weight: nn.Parameter) -> int:
        """Where in the flattened weight begins what ``own_part`` finds of it."""

    @abstractmethod
    def open_root(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside a step: what lies outside the blocks of ``model`` is whole for the body."""

    def accumulate(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch to what the step's last backward finds."""
        loss.backward()

    @abstractmethod
    def exact(self, weight: nn.Parameter) -> Tensor:
        """All of one weight as the optimizer knows it, in float32 where it keeps that; every rank must call it."""


def whole(strategy: Strategy, models: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """The models with all their weights on every rank; every rank must enter it. Nothing happens where they are."""
    return strategy.whole(models) if isinstance(strategy, Sharded) else nullcontext()


def open_root(strategy: Strategy, model: nn.Module | None) -> AbstractContextManager[None]:
    """As of ``Sharded``, for a model that is scored outside its own forward; the blocks gather themselves."""
    return strategy.open_root(model) if isinstance(strategy, Sharded) and model is not None else nullcontext()


def accumulate(strategy: Strategy, loss: Tensor) -> None:
    """As of ``Sharded``. Inside a step's forward DDP takes no notice, and reduces the sum with the last backward."""
    with torch.autocast(loss.device.type, enabled=False):  # as behind the step, where the last backward runs
        if isinstance(strategy, Sharded):
            strategy.accumulate(loss)
        else:
            loss.backward()


def consolidate(strategy: Strategy, model: nn.Module) -> None:
    """After the last step: the first rank's model holds every weight as it was trained, on the CPU, and can be saved.

    The other ranks' is spent. One weight at a time is whole on a device.
    """
    if not isinstance(strategy, Sharded):
        return
    found: dict[int, nn.Parameter] = {}  # of a tied weight, the same again
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(weight) not in found:
                exact = strategy.exact(weight).detach()
                exact = exact.to("cpu", copy=True) if strategy.is_global_zero else exact.new_empty(0)
                found[id(weight)] = nn.Parameter(exact, weight.requires_grad)
            module._parameters[name] = found[id(weight)]


def own_part(weight: Tensor) -> Tensor:
    """What of a weight lies on this rank; without a gradient."""
    if isinstance(weight, DTensor):
        return weight.to_local().detach()
    return getattr(weight, "ds_tensor", weight).detach()  # where ZeRO-3 keeps it, filled up at the end
