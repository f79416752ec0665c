"""Verbatim memory of the answers, read off the teacher-forced argmax: no generation is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import Literal

from lit_unlearn.evaluation.base import Record, Records

Floor = Literal["zero", "one_over_length"]


@dataclass(frozen=True)
class ExtractionStrength:
    """Share of the answer that greedy decoding completes by itself, given the rest as a prefix.

    ``ES = 1 - min{k : f(x, y_<k) = y_>=k} / |y|`` with f the greedy continuation (Carlini et al., 2021; Wang et al.,
    2025, https://arxiv.org/abs/2406.09179). The continuation from k is right iff every argmax from k on is, so ES is
    the length of the longest all-correct argmax suffix over |y|. The end-of-answer token is not counted.
    Reported for every set with an ``answer`` probe.
    """

    floor: Floor = "zero"
    """Value when not even the last token is right: 0, or 1 / |y| as OpenUnlearning has it."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"forget/answer"})

    @property
    def higher_is_better(self) -> bool | None:
        return None  # lower on forget, higher elsewhere

    def __call__(self, records: Records, retain_model: Records | None) -> Mapping[str, float]:
        return {
            f"{subset}_extraction_strength": fmean(extraction_strength(row, self.floor) for row in rows)
            for subset, rows in _answers(records).items()
        }


@dataclass(frozen=True)
class ExactMemorization:
    """Share of answer tokens that are the argmax given the true prefix; the end-of-answer token is not counted.

    Tirumala et al., 2022, https://arxiv.org/abs/2205.10770. Mean over tokens, then over answers; an answer of the end
    token alone is skipped. Reported for every set with an ``answer`` probe.
    """

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"forget/answer"})

    @property
    def higher_is_better(self) -> bool | None:
        return None  # lower on forget, higher elsewhere

    def __call__(self, records: Records, retain_model: Records | None) -> Mapping[str, float]:
        shares = {
            subset: [fmean(row.greedy_content) for row in rows if row.greedy_content]
            for subset, rows in _answers(records).items()
        }
        return {f"{subset}_exact_memorization": fmean(values) for subset, values in shares.items() if values}


def extraction_strength(record: Record, floor: Floor) -> float:
    """Longest all-correct suffix over length; 0 for an answer of the end token alone."""
    body = record.greedy_content
    if not body:
        return 0.0
    suffix = sum(takewhile(bool, reversed(body)))
    return max(suffix, 1 if floor == "one_over_length" else 0) / len(body)


def _answers(records: Records) -> dict[str, Sequence[Record]]:
    """Records of the true answers, by set."""
    return {
        probe.removesuffix("/answer"): rows for probe, rows in records.items() if probe.endswith("/answer") and rows
    }
