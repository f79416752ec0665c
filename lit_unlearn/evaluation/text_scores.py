"""Every number that a metric reads off a text, so that a record whose text is gone still holds all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise

from rouge_score.rouge_scorer import RougeScorer

from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Record, Records


def without_text(record: Record) -> Record:
    """The record's ids and numbers.

    Not even a digest of the text is kept: one without a key falls to guessing, since an answer is short and its form
    known, and a key beside the records is none, while one that ends with the process says less than the id.
    """
    scores = record.scores
    if record.text is not None and record.target is not None:
        scores = {name: score(record.target, record.text) for name, score in TEXT_SCORES.items()}
    return replace(record, target=None, text=None, scores=scores)


def text_scores(records: Records, probe: str, name: str) -> list[float]:
    """One number of ``TEXT_SCORES`` for each record of a probe; empty if the benchmark has no such probe.

    Raises:
        UserError: the probe was recorded without the model's own answers, or by a version that lacked the number.
    """
    return [_text_score(record, probe, name) for record in records.get(probe, ())]


def _text_score(record: Record, probe: str, name: str) -> float:
    if record.text is not None and record.target is not None:
        return TEXT_SCORES[name](record.target, record.text)
    if record.scores is None:
        raise UserError(f"probe {probe} was recorded without generated answers; its Probe needs generate=True")
    if name not in record.scores:
        raise UserError(f"probe {probe} was recorded under privacy=hashed without {name}; evaluate the model again")
    return record.scores[name]


def rouge_l_recall(target: str, text: str) -> float:
    """``LCS(target, text) / len(target)`` over stemmed words; an empty text recalls nothing."""
    return _scorer().score(target, text)["rougeL"].recall


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def repetition(target: str, text: str) -> float:
    """Share of word pairs of the text that stood in it before; 0 for a single word."""
    pairs = list(pairwise(text.split()))
    return 1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0


def empty(target: str, text: str) -> float:
    """1 for a text without a word, else 0."""
    return float(not text.strip())


TEXT_SCORES: Mapping[str, Callable[[str, str], float]] = {
    "rougeL_recall": rouge_l_recall,
    "repetition": repetition,
    "empty": empty,
}
"""Functions of (target, generated text). A metric takes them from here only; one that is new here is missing in
hashed records of before."""
