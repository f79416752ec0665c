"""DPO with the forget answer as the loser: IdkDPO (Maini et al., 2024) and AltPO (Mekala et al., 2024)."""

from dataclasses import dataclass

import torch.nn.functional as F

from lit_unlearn.types import LOGPS, Loss, Needs, Role, ScoresByRole


@dataclass(frozen=True)
class DPO:
    r"""``-(2 / beta) log sigmoid(beta (r(alternate) - r(forget)))``, ``r(y) = log(pi(y|x) / pi_ref(y|x))``.

    With refusals as alternates this is IdkDPO (https://arxiv.org/abs/2401.06121), with the model's own plausible
    alternates AltPO (https://arxiv.org/abs/2409.13474). Both codes carry the factor 2 / beta, unlike standard DPO
    (https://arxiv.org/abs/2305.18290); a term's weight of beta / 2 takes it away.
    """

    beta: float = 0.1
    """Inverse temperature."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} must be above 0")

    @property
    def needs(self) -> Needs:
        both = {Role.forget: LOGPS, Role.alternate: LOGPS}
        return Needs(policy=both, reference=both)

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        won, lost = (
            policy[role].sequence_logps - reference[role].sequence_logps for role in (Role.alternate, Role.forget)
        )  # [B] each
        values = -F.logsigmoid(self.beta * (won - lost)) * 2 / self.beta
        scores = policy[Role.forget]
        logp = scores.sequence_logps / scores.num_tokens.clamp(min=1)
        return Loss.per_sequence(values, scores, policy[Role.alternate], logp=logp, margin=won - lost)
