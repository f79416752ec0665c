"""What a benchmark is: examples to train on, probes to ask, metrics to report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lit_unlearn.types import Role


@dataclass(frozen=True, slots=True)
class Example:
    """One question with one answer."""

    id: int
    """Position of the row in its source split."""
    prompt: str
    response: str
    choice: int = 0
    """Which of several answers to the same question this is (perturbed answers)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the model this, keep what it says: each probe is run once, every metric reads the recorded answers."""

    name: str
    """``<set>/<answer kind>``, e.g. ``forget/answer``, ``forget/paraphrase``, ``forget/perturbed``."""
    examples: Sequence[Example]
    generate: bool = False
    """Also record the model's own greedy answer to the prompt."""


class Benchmark(Protocol):
    """A data set with forget and retain splits; a frozen dataclass whose fields are its config."""

    def train_split(self, role: Role) -> Sequence[Example]:
        """Rows of ``Role.forget`` or ``Role.retain`` (ids are positions in the split)."""
        ...

    def finetune_split(self, kind: str) -> Sequence[Example]:
        """Rows that make the ``target`` model (everything) or the ``retain`` model (everything but the forget set)."""
        ...

    def probes(self) -> Sequence[Probe]: ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics to report, in order."""
        ...
