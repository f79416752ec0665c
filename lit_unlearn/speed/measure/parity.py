"""The gate before the clock: two paths that do not give the same loss and gradients are not compared."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from lit_unlearn.speed.settings import Precision
from lit_unlearn.speed.workload.cells import Cell, Path


@dataclass(frozen=True, slots=True)
class Tolerance:
    loss: float
    """Largest relative difference."""
    cosine: float
    """Least cosine of the two gradients, all parameters as one vector."""
    norm: float
    """Largest relative difference of the gradients' lengths, which a cosine does not see."""


TOLERANCES: dict[Precision, Tolerance] = {
    "32-true": Tolerance(1e-5, 0.9999, 1e-3),
    "bf16-mixed": Tolerance(5e-3, 0.999, 2e-2),
}


@dataclass(frozen=True, slots=True)
class Parity:
    """The worst of all terms together and of each alone, where a small term cannot hide behind a large one."""

    loss_error: float
    cosine: float
    norm_error: float

    def within(self, limit: Tolerance) -> bool:
        """False for NaN too."""
        return self.loss_error < limit.loss and self.cosine > limit.cosine and self.norm_error < limit.norm


def check(cell: Cell) -> Parity:
    alone = {name: _compare(cell, [name]) for name in cell.terms}
    scale = sum(abs(difference.plain_loss) for difference in alone.values())
    found = [difference.parity(abs(difference.plain_loss)) for difference in alone.values()]
    if len(alone) > 1:  # of opposite signs: the sum of their sizes is what the difference is measured by
        found.append(_compare(cell, list(alone)).parity(scale))
    return Parity(
        _worst([parity.loss_error for parity in found]),
        -_worst([-parity.cosine for parity in found]),
        _worst([parity.norm_error for parity in found]),
    )


def _worst(values: list[float]) -> float:
    """The largest, NaN if any is: ``max`` would step over it."""
    return math.nan if any(map(math.isnan, values)) else max(values)


@dataclass(frozen=True, slots=True)
class _Difference:
    plain_loss: float
    ours_loss: float
    cosine: float
    norm_error: float

    def parity(self, scale: float) -> Parity:
        return Parity(abs(self.ours_loss - self.plain_loss) / scale, self.cosine, self.norm_error)


def _compare(cell: Cell, names: Collection[str]) -> _Difference:
    plain_loss, plain = _gradients(cell, "plain", names)
    ours_loss, ours = _gradients(cell, "ours", names)
    dot, plain_square, ours_square = 0.0, 0.0, 0.0
    for left, right in zip(plain, ours, strict=True):
        if left is not None:
            plain_square += float(left.double().square().sum())
        if right is not None:
            ours_square += float(right.double().square().sum())
        if left is not None and right is not None:
            dot += float((left.double() * right.double()).sum())
    lengths = math.sqrt(plain_square), math.sqrt(ours_square)
    cosine = dot / (lengths[0] * lengths[1]) if all(lengths) else math.nan
    norm_error = abs(lengths[1] / lengths[0] - 1) if lengths[0] else math.nan
    return _Difference(plain_loss, ours_loss, cosine, norm_error)


def _gradients(cell: Cell, path: Path, names: Collection[str]) -> tuple[float, list[Tensor | None]]:
    """In host memory, where a large model's second set of gradients has room."""
    policy = cell.models.policy
    policy.zero_grad(set_to_none=True)
    loss = cell.loss(path, names)
    loss.backward()
    gradients = [None if p.grad is None else p.grad.detach().cpu() for p in policy.parameters()]
    policy.zero_grad(set_to_none=True)
    return float(loss.detach()), gradients
