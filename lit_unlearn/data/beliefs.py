"""The beliefs: responses sampled from the policy, kept by example id between one refresh and the next."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lit_unlearn.data.tokenize import Encoded


@dataclass(frozen=True, slots=True)
class Belief:
    """One sampled response."""

    tokens: tuple[int, ...]
    """The end-of-answer token is the last, unless the sample reached its length cap."""
    logp: float
    """Mean token log-prob under the policy that sampled it."""
    reference_logps: tuple[float, ...] | None = None
    """Log-prob of each token under the frozen reference, where a term needs it."""


@dataclass
class BeliefStore:
    """Written by the sampler callback, read by the data module."""

    per_step: Literal["one", "all"] = "one"
    """``one``: a step trains on one stored belief of each prompt, drawn uniformly (unbiased for the mean, and its
    cost does not grow with their number); ``all``: on every one, each with weight 1 / their number."""
    seed: int = 0
    beliefs: dict[int, list[Belief]] = field(default_factory=dict)
    rounds: int = 0
    """Refreshes so far."""

    def draw(self, forget: Sequence[Encoded], step: int) -> list[Encoded]:
        """Belief rows for the forget rows of one step, in their order; a prompt without beliefs carries no weight.

        The draw depends on (seed, step, example id) only, so it is the same however rows are spread over ranks.
        """
        rows = []
        for row in forget:
            stored = self.beliefs.get(row.id, [])
            if self.per_step == "one" and stored:
                stored = [random.Random(f"{self.seed}/{step}/{row.id}").choice(stored)]
            if not stored:
                rows.append(replace(row, answer=(), reference_logps=(), weight=0.0))
            rows += [
                Encoded(row.id, row.prompt, belief.tokens, belief.reference_logps, 1 / len(stored)) for belief in stored
            ]
        return rows
