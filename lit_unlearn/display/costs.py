"""How long things take, by what has been measured of their kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lit_unlearn.display.phases import Phase


class Left(NamedTuple):
    """Time to come."""

    seconds: float
    exact: bool
    """False: at least so long, since a part of it has not been measured yet."""

    def __add__(self, other: Left) -> Left:  # type: ignore[override]
        return Left(self.seconds + other.seconds, self.exact and other.exact)

    def less(self, spent: float) -> Left:
        """What is left of it when ``spent`` seconds have gone."""
        return Left(max(0.0, self.seconds - spent), self.exact)


class Costs:
    """Seconds of each kind of phase, and of the parts of its last one."""

    def __init__(self) -> None:
        self._measured: dict[str, list[tuple[float, float]]] = {}
        """Kind -> (amount, seconds) of each phase that is over."""
        self._parts: dict[str, dict[str, float]] = {}
        """Kind -> title of a part -> seconds for a unit of amount."""

    def measure(self, phase: Phase, seconds: float) -> None:
        """Learn from a phase that is over; ``seconds``: its own, without the phases inside."""
        kind, amount = phase.planned.kind, phase.planned.amount * phase.share
        if kind and amount:
            self._measured.setdefault(kind, []).append((amount, seconds))
            self._parts[kind] = {part.title: (part.seconds or 0.0) / amount for part in phase.parts}

    def of(self, kind: str, amount: float, now: Sequence[tuple[float, float]] = ()) -> Left:
        """What ``amount`` of a kind takes; a lower bound, 0, where nothing of the kind has been measured.

        ``now``: what the running phases of the kind have done, as (amount, seconds).
        """
        if not amount:
            return Left(0.0, True)
        known = [*self._measured.get(kind, ()), *now]
        total = sum(amount for amount, _ in known)
        return Left(amount * sum(seconds for _, seconds in known) / total, True) if total else Left(0.0, False)

    def of_parts(self, kind: str, amount: float) -> dict[str, float]:
        """Title of each part -> seconds; empty where none has been measured."""
        return {title: seconds * amount for title, seconds in self._parts.get(kind, {}).items()}
