"""How much of the true answer the model still says: ROUGE-L recall of its greedy answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rouge_score.rouge_scorer import RougeScorer

from lit_unlearn.evaluation.base import Records
from lit_unlearn.evaluation.records import generated

SETS = ("forget", "retain", "real_authors", "world_facts")


@dataclass(frozen=True)
class Rouge:
    """Mean ROUGE-L recall, ``LCS(target, text) / len(target)`` over stemmed words.

    ROUGE (Lin, 2004), https://aclanthology.org/W04-1013; as TOFU (2401.06121) uses it. Sets the benchmark does not
    have are left out.
    """

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"forget/answer"})

    @property
    def higher_is_better(self) -> bool | None:
        return None  # lower on forget, higher elsewhere

    def __call__(self, records: Records, retain_model: Records | None) -> Mapping[str, float]:
        pairs = {subset: generated(records, f"{subset}/answer") for subset in SETS}
        return {f"{subset}_rougeL_recall": rouge_l_recall(texts) for subset, texts in pairs.items() if texts}


def rouge_l_recall(pairs: Sequence[tuple[str, str]]) -> float:
    """Mean recall over (target, generated text); an empty text recalls nothing."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return fmean(scorer.score(target, text)["rougeL"].recall for target, text in pairs)
