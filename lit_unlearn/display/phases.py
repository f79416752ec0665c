"""A run's phases: planned, running, over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class State(Enum):
    """Of a phase."""

    waiting = "waiting"
    running = "running"
    done = "done"
    skipped = "skipped"
    """What it would have made was there already."""
    stopped = "stopped"
    """By a fault or by the user."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A phase that is to come."""

    title: str
    kind: str = ""
    """Phases of one kind take the same time for each unit of ``amount``; empty: like no other."""
    amount: float = 1.0
    within: Mapping[str, float] = field(default_factory=dict)
    """Kind -> amount of the phases that will run inside this one."""


@dataclass(slots=True)
class Part:
    """A loop inside a phase."""

    title: str
    total: int
    started: float
    done: int = 0
    seconds: float | None = None
    """Once it is over."""


@dataclass(slots=True)
class Phase:
    """One phase, from its plan to its end."""

    planned: Planned
    state: State = State.waiting
    total: int | None = None
    """Steps it counts itself; None: it is made of parts."""
    first: int = 0
    """Steps that an interrupted run had taken."""
    done: int = 0
    note: str = ""
    started: float = 0.0
    ended: float = 0.0
    parts: list[Part] = field(default_factory=list)
    inside: dict[str, float] = field(default_factory=dict)
    """Kind -> amount of the phases that have run inside this one."""
    seconds_inside: float = 0.0

    @property
    def share(self) -> float:
        """Of its plan that falls to this run; the rest an interrupted one did."""
        return 1 - self.first / self.total if self.total else 1.0
