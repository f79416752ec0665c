"""One rule how weights are reached outside a training step: whole, between one gather and its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Sharded(ABC):
    """A strategy whose weights lie in pieces between the steps."""

    @abstractmethod
    def whole(self, models: Sequence[nn.Module]) -> AbstractContextManager[None]:
        """Every rank holds all weights of ``models`` for the body, and may run them as often as it likes."""

    @abstractmethod
    def open_root(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside a step: what lies outside the blocks of ``model`` is whole for the body."""


def whole(strategy: Strategy, models: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """The models with all their weights on every rank; every rank must enter it. Nothing happens where they are."""
    return strategy.whole(models) if isinstance(strategy, Sharded) else nullcontext()


def open_root(strategy: Strategy, model: nn.Module | None) -> AbstractContextManager[None]:
    """As of ``Sharded``, for a model that is scored outside its own forward; the blocks gather themselves."""
    return strategy.open_root(model) if isinstance(strategy, Sharded) and model is not None else nullcontext()


def own_part(weight: Tensor) -> Tensor:
    """What of a weight lies on this rank; without a gradient."""
    if isinstance(weight, DTensor):
        return weight.detach().to_local()
    return getattr(weight, "ds_tensor", weight).detach()  # where ZeRO-3 keeps it
