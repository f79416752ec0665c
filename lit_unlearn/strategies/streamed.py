"""Cuts models, and reads of the weights that are in their files still what each rank holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.models.streamed.source import Place, opened_in_order, places, plain
from lit_unlearn.parallel import all_reduce_sum, rank, world_size
from lit_unlearn.strategies.whole import Sharded, own_part

_PART = 2**18
"""Elements of a weight that are added up at once."""
_READ = 2**24
"""Elements that are read of a file at once."""
_TOLERANCE = 1e-9
"""Of sums in another order, relative to what they could be at most."""


def cut(strategy: Strategy, engine: ScoringEngine) -> None:
    """Nothing where weights lie whole; every rank must call it.

    Raises:
        UserError: a weight is not what its file holds, or holds numbers that are not finite.
    """
    if not isinstance(strategy, Sharded):
        return
    empty = {plain(name) for name, weight in engine.model.named_parameters() if weight.is_meta}
    at = places(engine.model)[0] if empty else {}
    strategy.cut(engine)
    if empty:
        weights = {plain(name): weight for name, weight in engine.model.named_parameters() if plain(name) in empty}
        _fill(strategy, weights, {name: at[name] for name in weights})
        _check(strategy, weights, {name: at[name] for name in weights})


@torch.no_grad()
def _fill(strategy: Sharded, weights: Mapping[str, nn.Parameter], at: Mapping[str, Place]) -> None:
    for name, stored in opened_in_order(at):
        piece, begin = _piece(strategy, weights[name], at[name])
        piece.copy_(stored.part(begin, begin + len(piece)))


def _piece(strategy: Sharded, weight: nn.Parameter, place: Place) -> tuple[Tensor, int]:
    """What of a weight lies on this rank, flat, and where it begins."""
    begin = strategy.begin(weight)
    return own_part(weight).view(-1)[: max(0, place.count - begin)], begin


@torch.no_grad()
def _check(strategy: Sharded, weights: Mapping[str, nn.Parameter], at: Mapping[str, Place]) -> None:
    """Sums over all ranks' pieces against sums over the files' tensors, each of which one rank reads from end to end.

    A sum, a sum of squares and one that depends on where each number stands.
    """
    device = next(iter(weights.values())).device
    sums = torch.zeros(2, len(weights), 3, dtype=torch.float64, device=device)
    order = list(weights)
    for row, name in enumerate(order):
        piece, begin = _piece(strategy, weights[name], at[name])
        sums[0, row] = _sums(piece, begin, at[name].count)
    mine = {name: at[name] for name in order[rank() :: world_size()]}
    for name, stored in opened_in_order(mine):
        count, total = at[name].count, sums[1, order.index(name)]
        for first in range(0, count, _READ):
            part = stored.part(first, min(first + _READ, count)).to(weights[name].dtype)  # in which it is held
            total += _sums(part, first, count).to(device)
    held, known = all_reduce_sum(sums).cpu().unbind()
    for name, ours, theirs in zip(order, held, known, strict=True):
        place = at[name]
        if not theirs.isfinite().all():
            raise UserError(f"{place.file}: weight {name} holds NaN or infinite numbers; copy the model again")
        if ((ours - theirs).abs() > _TOLERANCE * torch.sqrt(place.count * theirs[1])).any():
            raise UserError(f"{place.file}: weight {name} was not read as it stands there; copy the model again")


def _sums(flat: Tensor, begin: int, count: int) -> Tensor:
    """[3] float64; ``flat`` stands at ``begin`` of ``count`` elements."""
    total = torch.zeros(3, dtype=torch.float64, device=flat.device)
    ramp = torch.arange(min(_PART, len(flat)), dtype=torch.float64, device=flat.device)
    for first in range(0, len(flat), _PART):
        part = flat[first : first + _PART].double()
        whole = part.sum()
        at = part.dot(ramp[: len(part)]) + (begin + first) * whole
        total += torch.stack([whole, part.dot(part), at / count])
    return total
