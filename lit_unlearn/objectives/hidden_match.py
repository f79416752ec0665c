"""RMU's retain term: stay where the reference's hidden states are (https://arxiv.org/abs/2403.03218)."""

from dataclasses import dataclass

from lit_unlearn.types import Ask, Loss, Needs, Role, ScoresByRole


@dataclass(frozen=True)
class HiddenMatch:
    r"""``mean_d (h - h_ref)^2`` at the answer's tokens, mean over each answer; h the output of one decoder block."""

    role: Role = Role.retain
    layer: int = 7
    """Decoder block, counted from 0; RMU's own."""

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise ValueError(f"layer={self.layer} must not be negative: blocks are counted from 0")

    @property
    def needs(self) -> Needs:
        ask = {self.role: Ask(hidden_layers=(self.layer,), logps=False)}
        return Needs(policy=ask, reference=ask)

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        start = reference[self.role].hidden(self.layer).detach().float()  # [M, D]
        difference = scores.hidden(self.layer).float() - start
        return Loss.per_token((difference**2).mean(-1), scores, "seq_mean", row=scores.hidden_row)
