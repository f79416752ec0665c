"""What the model still knows outside the forget set, as one number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from lit_unlearn.evaluation.aggregate import harmonic_mean
from lit_unlearn.evaluation.base import Records
from lit_unlearn.evaluation.metrics.probability import probability, probability_with_options
from lit_unlearn.evaluation.metrics.truth_ratio import PROBES, Mean, true_better, truth_ratios
from lit_unlearn.evaluation.text_scores import text_scores

SETS = ("retain", "real_authors", "world_facts")


@dataclass(frozen=True)
class ModelUtility:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio on retain, real authors and world facts.

    TOFU (Maini et al., 2024), https://arxiv.org/abs/2401.06121, section 2.2.1. Nine parts, each in [0, 1], reported as
    ``utility/<set>_<part>``; probabilities of the general sets are against the wrong options, truth ratios are
    mean max(0, 1 - TR). One part at 0 makes the utility 0.
    """

    truth_ratio_mean: Mean = "geometric"
    """``geometric`` is OpenUnlearning's, ``arithmetic`` TOFU's: on one model .62 and .59, so never compare across."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"retain/answer", *(probe for subset in SETS for probe in PROBES[subset])})

    @property
    def higher_is_better(self) -> bool | None:
        return True

    def __call__(self, records: Records, retain_model: Records | None) -> Mapping[str, float]:
        parts = utility_parts(records, self.truth_ratio_mean)
        return {
            "model_utility": harmonic_mean(parts.values()),
            **{f"utility/{name}": value for name, value in parts.items()},
        }


def utility_parts(records: Records, mean: Mean) -> dict[str, float]:
    """The nine parts, by ``<set>_<part>``."""
    parts = {}
    for subset in SETS:
        answers, wrong = records[f"{subset}/answer"], records[f"{subset}/perturbed"]
        correct = records[PROBES[subset][0]]
        parts[f"{subset}_probability"] = (
            probability(answers) if subset == "retain" else probability_with_options(answers, wrong)
        )
        parts[f"{subset}_rougeL_recall"] = fmean(text_scores(records, f"{subset}/answer", "rougeL_recall"))
        ratios = (score.ratio for score in truth_ratios(correct, wrong, mean).values())
        parts[f"{subset}_truth_ratio"] = true_better(ratios)
    return parts
