"""Whether the model still prefers a true answer in other words over wrong answers of the same form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np

from lit_unlearn.evaluation.base import Record, Records
from lit_unlearn.evaluation.records import pair_by_id

Mean = Literal["geometric", "arithmetic"]

PROBES = {
    "forget": ("forget/paraphrase", "forget/perturbed"),
    "retain": ("retain/paraphrase", "retain/perturbed"),
    "real_authors": ("real_authors/answer", "real_authors/perturbed"),
    "world_facts": ("world_facts/answer", "world_facts/perturbed"),
}
"""Right and wrong answers of each set; the general sets have no paraphrase."""


class TruthScore(NamedTuple):
    """What one example says: c is the probability of its right answer, w that of its wrong answers."""

    ratio: float
    """TR = w / c."""
    prob_mean: float
    """c / (c + w + 1e-10), a probability of knowing."""


@dataclass(frozen=True)
class TruthRatio:
    """``TR = w / (c + 1e-10)``, c and w the length-normalised probabilities of the right and of the wrong answers.

    TOFU (Maini et al., 2024), https://arxiv.org/abs/2401.06121, section 2.2.2; the aggregates are those of
    OpenUnlearning (Dorna et al., 2025), https://arxiv.org/abs/2506.12618:

    ``forget_truth_ratio``: mean of min(TR, 1 / TR), 1 when right and wrong are equally likely.
    ``forget_truth_ratio_true_better`` and ``<set>_truth_ratio`` of the others: mean of max(0, 1 - TR).
    ``<set>_truth_ratio_prob_mean``: mean of c / (c + w); on forget it enters ``mem``.
    """

    mean: Mean = "geometric"
    """Over the wrong answers: ``geometric`` is OpenUnlearning's, ``arithmetic`` the original TOFU code's."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(PROBES["forget"])

    @property
    def higher_is_better(self) -> bool | None:
        return None  # prob_mean is to fall on forget, the others are to rise

    def __call__(self, records: Records, retain_model: Records | None) -> Mapping[str, float]:
        numbers: dict[str, float] = {}
        for subset, (correct, wrong) in PROBES.items():
            if not (records.get(correct) and records.get(wrong)):
                continue
            scores = truth_ratios(records[correct], records[wrong], self.mean).values()
            ratios = [score.ratio for score in scores]
            if subset == "forget":
                numbers["forget_truth_ratio"] = closer_to_1_better(ratios)
                numbers["forget_truth_ratio_true_better"] = true_better(ratios)
            else:
                numbers[f"{subset}_truth_ratio"] = true_better(ratios)
            numbers[f"{subset}_truth_ratio_prob_mean"] = fmean(score.prob_mean for score in scores)
        return numbers


def truth_ratios(correct: Sequence[Record], wrong: Sequence[Record], mean: Mean) -> dict[int, TruthScore]:
    """Score each example, by id.

    A model to which every answer is below 1e-10 has a geometric TR of 0, as in OpenUnlearning.
    """
    scores = {}
    for right, options in pair_by_id(correct, wrong):
        c = exp(right.mean_logp)
        if mean == "geometric":
            w = exp(fmean(option.mean_logp for option in options))
            ratio = w / (c + 1e-10)
        else:
            w = fmean(exp(option.mean_logp) for option in options)
            # No 1e-10 in the TOFU code. Differences of log-probs outlive the underflow of c; 700: exp stays finite.
            ratio = fmean(exp(min(option.mean_logp - right.mean_logp, 700.0)) for option in options)
        scores[right.id] = TruthScore(ratio, c / (c + w + 1e-10))
    return scores


def closer_to_1_better(ratios: Iterable[float]) -> float:
    """Mean of min(TR, 1 / (TR + 1e-10)): a model that never saw the example is indifferent."""
    tr = np.array(list(ratios))
    return fmean(np.minimum(tr, 1.0 / (tr + 1e-10)))


def true_better(ratios: Iterable[float]) -> float:
    """Mean of max(0, 1 - TR): a model that knows the example prefers the truth."""
    return fmean(np.maximum(0.0, 1.0 - np.array(list(ratios))))
