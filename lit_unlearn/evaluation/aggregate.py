"""The three numbers of the papers' tables, harmonic means of the numbers the metrics report."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

FORMULAS: dict[str, str] = {
    "mem": "HM(1 - forget_extraction_strength, 1 - forget_exact_memorization, 1 - forget_paraphrase_probability, "
    "1 - forget_truth_ratio_prob_mean)",
    "utility": "model_utility (no fluency judge yet; the paper has HM(model_utility, fluency))",
    "agg": "HM(mem, utility)",
}
"""HM is the harmonic mean; printed beside the numbers, because no two codebases mean the same by them."""

REMEMBERED = (
    "forget_extraction_strength",
    "forget_exact_memorization",
    "forget_paraphrase_probability",
    "forget_truth_ratio_prob_mean",
)


def aggregates(numbers: Mapping[str, float]) -> dict[str, float]:
    """``mem``, ``utility`` and ``agg``, each where its parts were reported.

    ``mem`` follows OpenUnlearning (Dorna et al., 2025), https://arxiv.org/abs/2506.12618, and ``agg`` the
    bootstrapping paper, https://arxiv.org/abs/2510.19422: HM(mem, utility), without privacy.
    """
    values = {}
    if all(name in numbers for name in REMEMBERED):
        values["mem"] = harmonic_mean(1.0 - numbers[name] for name in REMEMBERED)
    if "model_utility" in numbers:
        values["utility"] = numbers["model_utility"]
    if len(values) == 2:
        values["agg"] = harmonic_mean(values.values())
    return values


def harmonic_mean(values: Iterable[float]) -> float:
    """``n / sum(1 / v)``; 0 if any value is 0 or below, so one lost part cannot be made up for."""
    values = list(values)
    return 0.0 if any(value <= 0.0 for value in values) else statistics.harmonic_mean(values)
