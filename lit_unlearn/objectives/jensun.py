"""JensUn: bounded Jensen-Shannon unlearning (Singh et al., 2025, https://arxiv.org/abs/2509.02820)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_unlearn.types import Ask, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class JensUn:
    r"""``JS(pi, onehot(r_i))`` at each answer position, r the refusal's tokens in a circle; at most log 2.

    The authors' code puts probability 1 on each token of the refusal at every position, which sums to more than 1;
    here the target at position i of an answer is the one token ``r[i mod len(r)]``, as in the paper.
    """

    target_tokens: list[int]
    """Token ids of the refusal, e.g. of "No idea"."""
    role: Role = Role.forget
    reduction: Reduction = "token_mean"

    def __post_init__(self) -> None:
        if not self.target_tokens or min(self.target_tokens) < 0:
            raise ValueError(f"target_tokens={self.target_tokens} must be the token ids of a short refusal")

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: Ask(logits=True)})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]

        def values() -> Tensor:  # [N]
            vocabulary = scores.logits.shape[-1]
            if max(self.target_tokens) >= vocabulary:
                raise ValueError(f"target_tokens={self.target_tokens}: the vocabulary has {vocabulary} tokens")
            refusal = torch.tensor(self.target_tokens, device=scores.labels.device)
            target = refusal[scores.answer_index.clamp(min=0) % len(refusal)]  # [N]
            log_p = scores.logits.log_softmax(-1).gather(-1, target[:, None]).squeeze(-1)  # [N]
            p = log_p.exp()
            log_middle = torch.log1p(p) - math.log(2)  # of the target's token; elsewhere the middle is pi / 2
            policy_part = (1 - p) * math.log(2) + p * (log_p - log_middle)
            return (policy_part - log_middle) / 2

        return Loss.per_token(values, scores, self.reduction, logp=scores.logps)
