"""SimNPO: NPO without a reference, length-normalised (Fan et al., 2024, https://arxiv.org/abs/2410.07163)."""

from dataclasses import dataclass

import torch.nn.functional as F

from lit_unlearn.types import LOGPS, Loss, Needs, Role, ScoresByRole


@dataclass(frozen=True)
class SimNPO:
    r"""``-(2 / beta) log sigmoid(beta (-log pi(y|x) / |y| - delta))`` on each answer.

    |y| is its number of labelled tokens. The paper's margin gamma is beta * delta: OpenUnlearning's code, whose
    delta this is, has it inside the product.
    """

    role: Role = Role.forget
    beta: float = 4.5
    """Inverse temperature; 4.5 for TOFU forget10, 2.5 for forget05, 0.7 for MUSE News, 0.75 for MUSE Books."""
    delta: float = 0.0
    """Margin, in nats per token; the authors' runs have 0."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} must be above 0")

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: LOGPS})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        logp = scores.sequence_logps / scores.num_tokens.clamp(min=1)  # [B] per token
        values = -F.logsigmoid(self.beta * (-logp - self.delta)) * 2 / self.beta
        return Loss.per_sequence(values, scores, logp=logp)
