"""RMU: representation misdirection (Li et al., ICML 2024, https://arxiv.org/abs/2403.03218), fixed or adaptive."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_unlearn.types import Ask, Loss, Needs, Role, ScoresByRole


@dataclass(frozen=True)
class RMU:
    r"""``mean_d (h - c u)^2`` at the answer's tokens, mean over each answer; h the output of one decoder block.

    u is a fixed unit direction. The forward stops at the block. OpenUnlearning's code divides every example's sum by
    every example's length, so that examples see each other; this is the mean it meant.
    """

    role: Role = Role.forget
    layer: int = 7
    """Decoder block, counted from 0."""
    coefficient: float = 2.0
    """c, the length of the target; 2 for TOFU in OpenUnlearning, 6.5 for WMDP in the paper."""
    adaptive: bool = False
    """Take c times the length of the reference's own hidden state, token by token (Dang et al., 2024,
    https://arxiv.org/abs/2408.06223)."""
    seed: int = 0
    """Of u, drawn uniformly from [0, 1)^D and normalised, as in the source."""
    direction: list[float] | None = None
    """u itself, D numbers of any length but 0; null: drawn from ``seed``."""

    def __post_init__(self) -> None:
        if self.layer < 0 or self.coefficient <= 0 or (self.direction is not None and not any(self.direction)):
            raise ValueError(
                f"layer={self.layer} must not be negative, coefficient={self.coefficient} above 0, direction not all 0"
            )

    @property
    def needs(self) -> Needs:
        ask = {self.role: Ask(hidden_layers=(self.layer,), logps=False)}
        return Needs(policy=ask, reference=ask if self.adaptive else {})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        hidden = scores.hidden(self.layer).float()  # [M, D]
        length: float | Tensor = self.coefficient
        if self.adaptive:
            start = reference[self.role].hidden(self.layer).detach().float()  # [M, D]
            length = self.coefficient * start.norm(dim=-1, keepdim=True)
        values = ((hidden - length * self._unit(hidden)) ** 2).mean(-1)  # [M]
        return Loss.per_token(values, scores, "seq_mean", row=scores.hidden_row, norm=hidden.norm(dim=-1))

    def _unit(self, hidden: Tensor) -> Tensor:
        """[D]; the same on every rank and step."""
        if self.direction is not None:
            direction = torch.tensor(self.direction)
            if direction.shape != hidden.shape[-1:]:
                raise ValueError(f"direction has {len(direction)} numbers, the hidden states {hidden.shape[-1]}")
        else:
            direction = torch.rand(hidden.shape[-1], generator=torch.Generator().manual_seed(self.seed))
        return (direction / direction.norm()).to(hidden)
