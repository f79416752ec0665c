"""How likely the model finds the answers: length-normalised probability, alone or against wrong options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum
from statistics import fmean

from lit_unlearn.evaluation.base import Record, Records
from lit_unlearn.evaluation.records import pair_by_id

PLAIN = {
    "forget_probability": "forget/answer",
    "forget_paraphrase_probability": "forget/paraphrase",
    "retain_probability": "retain/answer",
}
WITH_OPTIONS = ("real_authors", "world_facts")


@dataclass(frozen=True)
class Probability:
    """Mean of ``p = exp(mean token log-prob)``, the end-of-answer token included.

    TOFU (Maini et al., 2024), https://arxiv.org/abs/2401.06121, section 2.2.2. On the general sets ``p`` is taken
    against the wrong options, ``p / (p + sum_j p_wrong_j + 1e-10)``. Sets the benchmark does not have are left out.
    """

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"forget/answer"})

    @property
    def higher_is_better(self) -> bool | None:
        return None  # lower on forget, higher elsewhere

    def __call__(self, records: Records, retain_model: Records | None) -> Mapping[str, float]:
        numbers = {name: probability(records[probe]) for name, probe in PLAIN.items() if records.get(probe)}
        for subset in WITH_OPTIONS:
            correct, wrong = records.get(f"{subset}/answer"), records.get(f"{subset}/perturbed")
            if correct and wrong:
                numbers[f"{subset}_probability"] = probability_with_options(correct, wrong)
        return numbers


def probability(records: Sequence[Record]) -> float:
    """Mean over the records of the geometric mean of the token probabilities."""
    return fmean(exp(record.mean_logp) for record in records)


def probability_with_options(correct: Sequence[Record], wrong: Sequence[Record]) -> float:
    """Mean share of the right answer in the probability of all options."""
    shares = []
    for right, options in pair_by_id(correct, wrong):
        p = exp(right.mean_logp)
        shares.append(p / (p + fsum(exp(option.mean_logp) for option in options) + 1e-10))
    return fmean(shares)
