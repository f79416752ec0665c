"""Whether the unlearned model can be told from one that never saw the forget set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from scipy.stats import ks_2samp

from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Records
from lit_unlearn.evaluation.metrics.truth_ratio import Mean, truth_ratios

LOG10_FLOOR = -300.0
"""Stands for every p-value below the range of float64; 400 against 400 examples reach 1e-239."""


@dataclass(frozen=True)
class ForgetQuality:
    """p-value of the two-sided two-sample Kolmogorov-Smirnov test on the forget set's truth ratios.

    TOFU (Maini et al., 2024), https://arxiv.org/abs/2401.06121, section 2.2.2. The samples are TR of the model and of
    the retain model; 1 is indistinguishable. Without records of a retain model nothing is reported.
    """

    mean: Mean = "geometric"
    """Over the wrong answers, as in ``TruthRatio``."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"forget/paraphrase", "forget/perturbed"})

    @property
    def higher_is_better(self) -> bool | None:
        return True

    def __call__(self, records: Records, retain_model: Records | None) -> Mapping[str, float]:
        if retain_model is None:
            return {}
        if missing := sorted(self.reads - retain_model.keys()):
            raise UserError(f"the retain model's records lack the probe {missing[0]}, which forget quality reads")
        model, retain = (
            truth_ratios(answers["forget/paraphrase"], answers["forget/perturbed"], self.mean)
            for answers in (records, retain_model)
        )
        if model.keys() != retain.keys():
            raise UserError(
                f"forget quality compares {len(model)} forget examples with {len(retain)} others of the retain model; "
                "evaluate both on the same forget split"
            )
        p_value = ks_p_value([score.ratio for score in model.values()], [score.ratio for score in retain.values()])
        log10_p = log10(p_value) if p_value > 10**LOG10_FLOOR else LOG10_FLOOR
        return {"forget_quality": p_value, "forget_quality_log10": log10_p}


def ks_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of the hypothesis that both samples come from one distribution."""
    result: Any = ks_2samp(first, second)  # scipy makes the class at run time: its fields have no types
    return float(result.pvalue)
