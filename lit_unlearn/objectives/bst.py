"""Bootstrapping on tokens, BS-T (Li et al., ICLR 2026, https://arxiv.org/abs/2510.19422)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_unlearn.types import Ask, Loss, Needs, Reduction, Role, Scores, ScoresByRole


@dataclass(frozen=True)
class BST:
    r"""``<t, log pi>`` with ``t = (1 - lambda) onehot(y) + lambda sg[q]``, minimised (eq. 5-6).

    q is the policy's own top-k distribution, renormalised over its k tokens: the beliefs that would inherit the
    mass taken from y. Since q is detached, ``<q, log pi>`` has the gradient of ``log S_k``, the log mass of the
    top-k set, so k + 1 log-probs a position are enough. ``k = vocabulary`` is (1 - lambda) times gradient ascent.
    """

    role: Role = Role.forget
    mix: float = 0.2
    """lambda_BST in [0, 1], share of the beliefs; 0 is gradient ascent. 0.2 in the authors' configuration."""
    k: int = 20
    """Tokens in the belief set; values above the vocabulary take all of it."""
    reduction: Reduction = "seq_mean"
    """``seq_mean`` in the authors' code, to which the published lambda and learning rate belong; ``seq_sum`` is
    eq. 6."""
    stop_gradient: bool = True
    """Detach q. False adds ``-lambda H(q)`` to the loss."""
    temperature: float = 1.0
    """Temperature of q: below 1 sharpens the belief and strengthens its suppression, above 1 is safe only with
    ``guard``."""
    entropy_weight: float = 0.0
    """mu, weight of an extra ``-lambda mu H(q)`` with gradient: pushes the belief apart. 0: the paper."""
    nucleus: float | None = None
    """Top-p beliefs: of the k tokens keep the smallest set with at least this share of the policy's mass; null: all
    k. Keeps the belief signal alive where the policy is sure of itself; give a generous k."""
    normalize: bool = False
    """Divide the loss by 1 - lambda, so that lambda sets the ratio of belief to target and not the learning rate."""
    guard: bool = True
    """Leave the belief out on tokens where it would raise the target, i.e. where t_y < pi_y. The target's own share
    stays: such a token's loss is ``(1 - lambda) log pi_y`` (``normalize``: ``log pi_y``), so that no token is pushed
    harder than the others. Never the case at temperature 1 with the target in the top k."""

    def __post_init__(self) -> None:
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix={self.mix} must lie in [0, 1]")
        if self.k < 1 or self.temperature <= 0 or self.entropy_weight < 0:
            raise ValueError(
                f"k={self.k} must be at least 1, temperature={self.temperature} above 0, "
                f"entropy_weight={self.entropy_weight} not negative"
            )
        if self.nucleus is not None and not 0 < self.nucleus <= 1:
            raise ValueError(f"nucleus={self.nucleus} must lie in (0, 1], or be null")
        if self.normalize and self.mix == 1:
            raise ValueError("normalize=true divides by 1 - mix, which is 0")
        if not self.stop_gradient and self.entropy_weight:
            raise ValueError("stop_gradient=false already adds the entropy of q; set entropy_weight=0")

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: Ask(top_k=self.k)})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        values, stats = self.token_values(scores)
        return Loss.per_token(values, scores, self.reduction, logp=scores.logps, **stats)

    def token_values(self, scores: Scores) -> tuple[Tensor, dict[str, Tensor]]:
        """([N] ``<t, log pi>``, [N] statistics)."""
        topk_logps, topk_ids = scores.topk(self.k)  # [N, K]
        inside = self._inside(topk_logps)  # [N, K]
        scaled = torch.where(inside, topk_logps / self.temperature, -torch.inf)
        log_belief = scaled - scaled.logsumexp(-1, keepdim=True)  # [N, K]
        belief = log_belief.exp()
        detached = belief.detach()
        suppression = ((detached if self.stop_gradient else belief) * topk_logps).sum(-1)  # [N] <q, log pi>
        entropy = -(belief * torch.where(inside, log_belief, 0.0)).sum(-1)  # [N]
        mix = self._guarded_mix(scores, detached, topk_ids)  # [N]
        values = (1 - self.mix) * scores.logps + mix * (suppression - self.entropy_weight * entropy)
        mass = torch.where(inside, topk_logps.exp(), 0.0).sum(-1)
        stats = {"belief_mass": mass, "guarded": (mix != self.mix).float()}
        return (values / (1 - self.mix) if self.normalize else values), stats

    def _inside(self, topk_logps: Tensor) -> Tensor:
        """[N, K] bool, the tokens of the belief set; the most likely one always is."""
        if self.nucleus is None:
            return torch.ones_like(topk_logps, dtype=torch.bool)
        probabilities = topk_logps.detach().exp()
        return probabilities.cumsum(-1) - probabilities < self.nucleus

    def _guarded_mix(self, scores: Scores, belief: Tensor, topk_ids: Tensor) -> Tensor:
        """[N] lambda, or 0 where the soft target's share of y is below the policy's: there y would go up."""
        mix = torch.full_like(scores.logps, self.mix)
        if not self.guard:
            return mix
        belief_of_label = (belief * (topk_ids == scores.labels[:, None])).sum(-1)  # [N]
        target = (1 - self.mix) + self.mix * belief_of_label  # [N] t_y
        raises_label = target < scores.logps.detach().exp() - 1e-6  # equality (k = vocabulary, lambda = 1) is safe
        return torch.where(raises_label, 0.0, mix)
