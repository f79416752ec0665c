"""One rule how weights are reached outside a training step: inside ``whole``, gathered at once or block by block."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_unlearn.engine.body import body_of, decoder_blocks
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.parallel import all_reduce_max
from lit_unlearn.strategies.settings import Gathering
from lit_unlearn.strategies.turns import in_turns

_SPARE = 0.5
"""Of the memory that is free on a GPU, what whole weights may take; the rest is for what reads them."""


class Sharded(Strategy):
    """A strategy whose weights lie in pieces between the steps, each of the decoder's blocks apart from the rest."""

    gathering: Gathering
    _reached = False  # whether weights are there for whoever runs a model

    @property
    @abstractmethod
    def is_cut(self) -> bool:
        """Whether weights lie in pieces already."""

    @abstractmethod
    def gather(self, units: Sequence[nn.Module]) -> AbstractContextManager[None]:
        """Every rank holds the weights of blocks, and of engines what lies outside of theirs, for the body."""

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

    @abstractmethod
    def at_rest(self) -> AbstractContextManager[None]:
        """For the body, nothing gathers or cuts weights but ``gather``."""

    @contextmanager
    def whole(self, engines: Sequence[ScoringEngine]) -> Iterator[None]:
        """For the body, every rank may run ``engines`` as often as it likes, and meets others by ``parallel`` only.

        All their weights are whole, or those outside of the blocks, and of each block while it runs.
        """
        if not self.is_cut:
            yield
            return
        blocks = [block for engine in engines for block in decoder_blocks(engine.model)]
        at_once = self._gathers_at_once(engines)
        turns = nullcontext() if at_once else in_turns(blocks, lambda block: self.gather([block]))
        with self._reach(), self.at_rest(), self.gather([*engines, *(blocks if at_once else ())]), turns:
            yield

    def guard(self, engine: ScoringEngine) -> None:
        """From now on it refuses to run outside of ``whole`` and of the steps: its weights lie in pieces."""
        for part in [body_of(engine.model)[1], *decoder_blocks(engine.model)]:
            part.register_forward_pre_hook(self._refuse, prepend=True)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._reach():
            return super().training_step(*args, **kwargs)

    def backward(self, *args: Any, **kwargs: Any) -> Any:
        with self._reach():  # for blocks that are computed again
            return super().backward(*args, **kwargs)

    @contextmanager
    def _reach(self) -> Iterator[None]:
        before, self._reached = self._reached, True
        try:
            yield
        finally:
            self._reached = before

    def _refuse(self, *_: object) -> None:
        if not self._reached:
            raise RuntimeError(
                "this strategy keeps the weights in pieces: a model is read inside UnlearnModule.reading(), which "
                "every rank enters"
            )

    def _gathers_at_once(self, engines: Sequence[ScoringEngine]) -> bool:
        if self.gathering != "auto" or self.root_device.type != "cuda":
            return self.gathering != "blocks"
        free, _ = torch.cuda.mem_get_info(self.root_device)
        free += torch.cuda.memory_reserved(self.root_device) - torch.cuda.memory_allocated(self.root_device)
        low = self.precision_plugin.precision == "bf16-mixed"
        needed = sum(whole_bytes(weight, low) for engine in engines for weight in engine.parameters())
        return not all_reduce_max(int(needed > _SPARE * free))

    def accumulate(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch to what the step's last backward finds."""
        loss.backward()

    @abstractmethod
    def exact(self, weight: nn.Parameter) -> Tensor:
        """All of one weight as the optimizer knows it, in float32 where it keeps that; every rank must call it."""

    @abstractmethod
    def assign(self, weight: nn.Parameter, value: Tensor) -> None:
        """Give one weight what ``exact`` gave, here and where the optimizer keeps it; every rank must call it."""


def whole(strategy: Strategy, engines: Sequence[ScoringEngine]) -> AbstractContextManager[None]:
    """As of ``Sharded``; every rank must enter it. Nothing happens where all weights are on every rank."""
    return strategy.whole(engines) if isinstance(strategy, Sharded) else nullcontext()


def own_weights(unit: nn.Module) -> list[nn.Parameter]:
    """Of a block, or what of an engine lies outside of its blocks."""
    if not isinstance(unit, ScoringEngine):
        return list(unit.parameters())
    of_blocks = {id(weight) for weight in decoder_blocks(unit.model).parameters()}
    return [weight for weight in unit.parameters() if id(weight) not in of_blocks]


def whole_bytes(weight: Tensor, low: bool) -> int:
    """Of all pieces together, gathered in bf16 where ``low``."""
    return getattr(weight, "ds_numel", weight.numel()) * (2 if low else weight.element_size())


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


def exact(strategy: Strategy, weight: nn.Parameter) -> Tensor:
    """As of ``Sharded``; the weight itself where it is whole."""
    return (strategy.exact(weight) if isinstance(strategy, Sharded) else weight).detach()


@torch.no_grad()
def assign(strategy: Strategy, weight: nn.Parameter, value: Tensor) -> None:
    """As of ``Sharded``. ``value``: all of the weight, on any device."""
    if isinstance(strategy, Sharded):
        strategy.assign(weight, value)
    else:
        weight.copy_(value)


def own_part(weight: Tensor) -> Tensor:
    """What of a weight lies on this rank; without a gradient."""
    if isinstance(weight, DTensor):
        return weight.to_local().detach()
    return getattr(weight, "ds_tensor", weight).detach()  # where ZeRO-3 keeps it, filled up at the end
