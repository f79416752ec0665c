"""Whether the answers are still language: catches the collapse into "always always always"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from lit_unlearn.evaluation.base import Records
from lit_unlearn.evaluation.records import generated

SETS = ("forget", "retain")


@dataclass(frozen=True)
class Repetition:
    """Mean over texts of ``1 - unique word pairs / word pairs``: seq-rep-2, one minus distinct-2.

    Welleck et al., 2020, https://arxiv.org/abs/1908.04319; Li et al., 2016, https://arxiv.org/abs/1510.03055.
    Empty answers have no words to repeat: they are left out of the mean and their share is reported apart.
    """

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"forget/answer"})

    @property
    def higher_is_better(self) -> bool | None:
        return False

    def __call__(self, records: Records, retain_model: Records | None) -> Mapping[str, float]:
        numbers: dict[str, float] = {}
        for subset in SETS:
            texts = [text for _, text in generated(records, f"{subset}/answer")]
            if not texts:
                continue
            spoken = [text for text in texts if text.strip()]
            numbers[f"{subset}_empty_answers"] = 1.0 - len(spoken) / len(texts)
            if spoken:
                numbers[f"{subset}_repetition"] = fmean(repetition(text) for text in spoken)
        return numbers


def repetition(text: str) -> float:
    """Share of word pairs that stood in the text before; 0 for a single word."""
    pairs = list(pairwise(text.split()))
    return 1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0
