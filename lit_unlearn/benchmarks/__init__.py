"""Benchmarks by the name a config gives them."""

from lit_unlearn.benchmarks.authors import Authors
from lit_unlearn.benchmarks.files import Files
from lit_unlearn.benchmarks.tofu import Tofu

BENCHMARKS: dict[str, type] = {
    "authors": Authors,  # ours: fictitious authors made from a seed, in TOFU's schema, no download
    "files": Files,  # questions and answers of the user's own, from JSON lines, JSON or CSV
    "tofu": Tofu,  # Maini et al., COLM 2024, https://arxiv.org/abs/2401.06121
}
