"""Rows in TOFU's schema, the probes made of them and the metrics that read those probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from lit_unlearn.benchmarks.base import Example, Probe

METRICS = (
    "probability",
    "rouge",
    "truth_ratio",
    "extraction_strength",
    "exact_memorization",
    "forget_quality",
    "model_utility",
    "repetition",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One question of TOFU, with what the truth ratio compares the answer to."""

    question: str
    answer: str
    paraphrased_question: str = ""
    """Part of the schema; no probe asks it."""
    paraphrased_answer: str = ""
    """The same fact in other words; empty for general knowledge and for rows that are only trained on."""
    perturbed_answer: tuple[str, ...] = ()
    """Wrong answers in the form of the paraphrase (of the answer, where there is no paraphrase)."""

    @property
    def pair(self) -> tuple[str, str]:
        """What makes a row the same row: TOFU asks one question twice, so the question alone does not."""
        return self.question, self.answer


Rows = Mapping[int, Row]
"""Rows by their position in the split they come from."""


def spread(num_rows: int, limit: int | None) -> list[int]:
    """Up to ``limit`` positions below ``num_rows``, ascending, one from each of ``limit`` equal stretches.

    The place within a stretch moves by the golden ratio: a constant step would meet the same question of every author,
    because authors follow each other at a fixed distance. None: all positions.
    """
    if limit is None or limit >= num_rows:
        return list(range(num_rows))
    edges = [*(i * num_rows // limit for i in range(limit)), num_rows]
    return [start + int(i * 0.6180339887 % 1 * (end - start)) for i, (start, end) in enumerate(pairwise(edges))]


def keep_spread(rows: Rows, limit: int | None) -> Rows:
    """Up to ``limit`` of the rows of a whole split, see ``spread``."""
    return {position: rows[position] for position in spread(len(rows), limit)}


def examples_of(rows: Rows) -> list[Example]:
    """Question and answer, as they are trained on."""
    return [Example(position, row.question, row.answer) for position, row in rows.items()]


def probes_of(forget: Rows, retain: Rows, real_authors: Rows, world_facts: Rows, holdout: Rows) -> list[Probe]:
    """The probes of TOFU's evaluation. Rewordings answer the original question, as in the paper's code."""
    return [
        Probe("forget/answer", examples_of(forget), generate=True),
        Probe("forget/paraphrase", _paraphrases(forget)),
        Probe("forget/perturbed", _perturbed(forget)),
        Probe("retain/answer", examples_of(retain), generate=True),
        Probe("retain/paraphrase", _paraphrases(retain)),
        Probe("retain/perturbed", _perturbed(retain)),
        Probe("real_authors/answer", examples_of(real_authors), generate=True),
        Probe("real_authors/perturbed", _perturbed(real_authors)),
        Probe("world_facts/answer", examples_of(world_facts), generate=True),
        Probe("world_facts/perturbed", _perturbed(world_facts)),
        Probe("holdout/answer", examples_of(holdout)),
    ]


def _paraphrases(rows: Rows) -> list[Example]:
    return [Example(position, row.question, row.paraphrased_answer) for position, row in rows.items()]


def _perturbed(rows: Rows) -> list[Example]:
    return [
        Example(position, row.question, wrong, choice)
        for position, row in rows.items()
        for choice, wrong in enumerate(row.perturbed_answer)
    ]
