"""How much of the true answer the model still says: ROUGE-L recall of its greedy answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from lit_unlearn.evaluation.base import Records
from lit_unlearn.evaluation.text_scores import text_scores

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
        recalls = {subset: text_scores(records, f"{subset}/answer", "rougeL_recall") for subset in SETS}
        return {f"{subset}_rougeL_recall": fmean(values) for subset, values in recalls.items() if values}
