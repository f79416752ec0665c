"""Brings weights to the dtype they are exported in, in place, and counts what is lost of the update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lit_unlearn.models.adapters.lora import (
    adapted_layers,
    adapter_weights,
    added_weight,
    empty_adapters,
    plain_weights,
    quantized_weights,
)
from lit_unlearn.models.files import StartFiles
from lit_unlearn.models.settings import ExportForm

_PART = 2**24
"""About as many elements are compared at once."""


@dataclass(frozen=True)
class Rounding:
    """What an update loses where it is finer than the dtype of the export."""

    dtype: str
    undone_share: float | None
    """Of the weights that training changed, those that rounding put back to the start's (rounded) value, 0 to 1."""
    lost_norm: float | None
    """Norm of the difference between the update and what is left of it, over the norm of the update."""
    compared_share: float
    """Of all weights, those whose start could be read again, 0 to 1; the two numbers above are of these."""

    def as_numbers(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        if self.undone_share is None or self.lost_norm is None:
            return f"rounded to {self.dtype}: what is lost is not known, the start's weights are in no file"
        text = f"rounded to {self.dtype}: {100 * self.undone_share:.1f} % of the changed weights are as at the start "
        text += f"again; of the update's norm {100 * self.lost_norm:.1f} % is lost"
        unknown = 1 - self.compared_share
        return text if not unknown else f"{text} ({100 * unknown:.1f} % of the weights could not be compared)"


@torch.no_grad()
def round_weights(model: PreTrainedModel, dtype: torch.dtype, form: ExportForm) -> Rounding | None:
    """Give each weight a value that ``dtype`` can hold, so that the model is what its export will be.

    Under ``merged`` adapters are folded into their layers first and left without effect, under ``adapter`` only their
    own weights are rounded. Quantized layers hold plain weights afterwards; their start is what the four bits stood
    for. Every rank of a sharded model calls it: one weight at a time is whole. None: every weight had such a value's
    dtype.
    """
    tally = _Tally()
    if form == "adapter":
        for layer in adapted_layers(model).values():
            before = added_weight(layer)
            for weight in adapter_weights(layer):
                tally.narrowed |= weight.dtype != dtype
                weight.copy_(weight.to(dtype))
            tally.add(torch.zeros_like(before), before, added_weight(layer), dtype)
        return tally.result(dtype)
    start = StartFiles(model)
    for name, weight, added in plain_weights(model):
        all_of_it = weight.full_tensor() if isinstance(weight, DTensor) else weight
        tally.narrowed |= weight.dtype != dtype or added is not None
        before = start.tensor(name, weight.shape)
        for there, then, more in _parts(all_of_it, before, added):
            trained = there.float() if more is None else there.float() + more
            rounded = trained.to(dtype)
            tally.add(then, trained, rounded.float(), dtype)
            there.copy_(rounded)  # last: ``trained`` may be the same memory
        if isinstance(weight, DTensor):
            weight.copy_(weight.to(dtype))
    for layer, added in quantized_weights(model):
        start_of_it = layer.whole()
        trained = start_of_it if added is None else start_of_it + added
        layer.hold(trained.to(dtype))
        tally.narrowed = True
        tally.add(start_of_it, trained, layer.whole(), dtype)
    empty_adapters(model)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                buffer.copy_(buffer.to(dtype))
    return tally.result(dtype)


def _parts(weight: Tensor, *others: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Rows of a weight, as views, with the same rows of the others."""
    weight = torch.atleast_1d(weight.detach())
    rows = max(1, _PART // max(1, weight[:1].numel()))
    for first in range(0, len(weight), rows):
        cut = [None if other is None else torch.atleast_1d(other)[first : first + rows] for other in others]
        yield weight[first : first + rows], cut[0], cut[1]


class _Tally:
    """Sums over all weights."""

    def __init__(self) -> None:
        self.narrowed = False
        self.weights = self.compared = self.changed = self.undone = 0
        self.update = self.lost = 0.0

    def add(self, start: Tensor | None, trained: Tensor, rounded: Tensor, dtype: torch.dtype) -> None:
        self.weights += trained.numel()
        if start is None:
            return
        self.compared += trained.numel()
        start = start.to(trained.device).float()
        start_rounded = start.to(dtype).float()  # what the export would hold had nothing been trained
        changed = trained != start
        self.changed += int(changed.sum())
        self.undone += int((changed & (rounded == start_rounded)).sum())
        update, left = trained - start, rounded - start_rounded
        self.update += update.square().sum(dtype=torch.float64).item()
        self.lost += (update - left).square().sum(dtype=torch.float64).item()

    def result(self, dtype: torch.dtype) -> Rounding | None:
        if not self.narrowed:
            return None
        known = self.compared > 0
        return Rounding(
            str(dtype).removeprefix("torch."),
            self.undone / max(1, self.changed) if known else None,
            math.sqrt(self.lost / self.update) if self.update else (0.0 if known else None),
            self.compared / max(1, self.weights),
        )
