"""Preference optimisation by imitation: learn to answer the forget questions with the alternates."""

from dataclasses import dataclass

from lit_unlearn.objectives.nll import NLL
from lit_unlearn.types import Role


@dataclass(frozen=True)
class IdkNLL(NLL):
    r"""``-log pi(alternate | x)`` on each token: "PO" of TOFU (https://arxiv.org/abs/2401.06121), IdkNLL elsewhere."""

    role: Role = Role.alternate
