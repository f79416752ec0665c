"""Whether the answers are still language: catches the collapse into "always always always"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from lit_unlearn.evaluation.base import Records
from lit_unlearn.evaluation.text_scores import text_scores

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
            repeated, empty = (text_scores(records, f"{subset}/answer", name) for name in ("repetition", "empty"))
            if not repeated:
                continue
            spoken = [share for share, silent in zip(repeated, empty, strict=True) if not silent]
            numbers[f"{subset}_empty_answers"] = 1.0 - len(spoken) / len(repeated)
            if spoken:
                numbers[f"{subset}_repetition"] = fmean(spoken)
        return numbers
