"""Negative preference optimization (Zhang et al., 2024, https://arxiv.org/abs/2404.05868)."""

from dataclasses import dataclass

import torch.nn.functional as F

from lit_unlearn.types import LOGPS, Loss, Needs, Role, ScoresByRole


@dataclass(frozen=True)
class NPO:
    r"""``-(2 / beta) log sigmoid(-beta log(pi(y|x) / pi_ref(y|x)))`` on each whole answer (eq. 3)."""

    role: Role = Role.forget
    beta: float = 0.1
    """Inverse temperature; ``beta -> 0`` recovers gradient ascent."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} must be above 0; for its limit beta -> 0 use grad_ascent")

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: LOGPS}, reference={self.role: LOGPS})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        log_ratio = scores.sequence_logps - reference[self.role].sequence_logps  # [B]
        values = -F.logsigmoid(-self.beta * log_ratio) * 2 / self.beta
        logp = scores.sequence_logps / scores.num_tokens.clamp(min=1)
        return Loss.per_sequence(values, scores, logp=logp, log_ratio=log_ratio)
