"""Metrics: pure functions of recorded answers."""

from lit_unlearn.evaluation.metrics.forget_quality import ForgetQuality
from lit_unlearn.evaluation.metrics.memorization import ExactMemorization, ExtractionStrength
from lit_unlearn.evaluation.metrics.probability import Probability
from lit_unlearn.evaluation.metrics.repetition import Repetition
from lit_unlearn.evaluation.metrics.rouge import Rouge
from lit_unlearn.evaluation.metrics.truth_ratio import TruthRatio
from lit_unlearn.evaluation.metrics.utility import ModelUtility

METRICS: dict[str, type] = {
    "probability": Probability,  # TOFU, Maini et al. 2024, 2401.06121
    "rouge": Rouge,  # Lin 2004, W04-1013; as in TOFU
    "truth_ratio": TruthRatio,  # TOFU; aggregates of OpenUnlearning, Dorna et al. 2025, 2506.12618
    "extraction_strength": ExtractionStrength,  # Carlini et al. 2021, 2012.07805; Wang et al. 2025, 2406.09179
    "exact_memorization": ExactMemorization,  # Tirumala et al. 2022, 2205.10770
    "forget_quality": ForgetQuality,  # TOFU
    "model_utility": ModelUtility,  # TOFU
    "repetition": Repetition,  # Welleck et al. 2020, 1908.04319
}
