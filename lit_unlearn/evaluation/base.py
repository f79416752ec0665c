"""What the model said, kept: every reported number can be computed from these records again, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """The model's answer to one example of one probe."""

    id: int
    choice: int
    logps: tuple[float, ...]
    """Log-prob of each labelled token, teacher-forced; the last one is the end-of-answer token."""
    greedy: tuple[bool, ...]
    """Whether the most likely token is the label, aligned with ``logps``."""
    target: str | None
    """The answer's text; None under ``privacy=hashed``."""
    text: str | None = None
    """The model's own greedy answer, where the probe asked for it and it may be kept."""
    scores: Mapping[str, float] | None = None
    """In the place of a greedy answer that may not be kept, what metrics read off it: see ``text_scores``."""

    @property
    def mean_logp(self) -> float:
        """Mean token log-prob, the end-of-answer token included."""
        return sum(self.logps) / len(self.logps)


Records = Mapping[str, Sequence[Record]]
"""By probe name."""


class Metric(Protocol):
    """A pure function of records: no model, no other metric. A frozen dataclass whose fields are its config."""

    @property
    def reads(self) -> frozenset[str]:
        """Probe names."""
        ...

    @property
    def higher_is_better(self) -> bool | None: ...

    def __call__(self, records: Records, retain_model: Records | None) -> Mapping[str, float]: ...
