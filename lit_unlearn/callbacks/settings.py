"""Settings of the belief sampler and the squeezing probe, read before torch is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class BeliefConfig:
    """When and how beliefs are sampled; read only where a term has ``role: belief``."""

    num_samples: int = 3
    """N, samples of each prompt at a refresh (Li et al., 2026)."""
    temperature: float = 0.7
    """Below 1: samples at 1 with a fresh policy have zero expected gradient under a sequence-sum base loss."""
    top_p: float = 1.0
    max_new_tokens: int = 200
    every_n_epochs: int | None = 2
    """Refresh all prompts at the start of every n-th epoch."""
    every_n_steps: int | None = None
    """Refresh the prompts of the coming n steps every n steps; set ``every_n_epochs: null``. Both null: sample once,
    from the policy's start (off-policy, the case of the paper's theorem 5.3)."""
    stale_after: float | None = None
    """At a refresh, sample only the prompts with a belief whose mean token log-prob has fallen by more than this many
    nats since it was sampled, and those without beliefs; the others keep theirs. Null: sample all (the paper)."""
    drop_targets: bool = False
    """Leave out samples that say the true answer: pushing these down is the forget term's work. The paper keeps them.
    A prompt whose samples all do has no beliefs and no weight. ``beliefs/target_share`` is logged either way."""
    per_step: Literal["one", "all"] = "one"
    """Train on one stored belief of a prompt each step, drawn uniformly, or on all of them."""
    batch_size: int = 64

    def __post_init__(self) -> None:
        periods = [period for period in (self.every_n_epochs, self.every_n_steps) if period is not None]
        if len(periods) == 2:
            raise ValueError("beliefs.every_n_epochs and every_n_steps exclude each other; set one of them to null")
        if min([self.num_samples, self.max_new_tokens, self.batch_size, *periods]) < 1:
            raise ValueError(
                "beliefs: num_samples, max_new_tokens, batch_size and the refresh period must be at least 1"
            )
        if self.stale_after is not None and (self.stale_after <= 0 or not periods):
            raise ValueError(
                f"beliefs.stale_after={self.stale_after} must be above 0 and needs refreshes: every_n_epochs or "
                "every_n_steps; null samples all prompts at each refresh"
            )
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"beliefs.temperature={self.temperature} must be above 0, top_p={self.top_p} in (0, 1]")


@dataclass
class SqueezeConfig:
    """Which responses are watched and how often."""

    num_prompts: int = 8
    """Forget prompts, evenly spaced over the split."""
    control: bool = True
    """Watch as many retain prompts in the same way: ``squeeze/retain_index`` and the like. What the index of forget
    prompts rises above theirs is not the drift of the whole model."""
    protocol: Literal["beam", "token_rank"] = "beam"
    """``beam``: beam search from the original model, ranked by probability, cut at 20 % and 60 % (the paper).
    ``token_rank``: five responses a band, each token drawn from the vocabulary ranks 0-10 %, 10-50 % or 50-90 %
    (the authors' toy experiment)."""
    num_beams: int = 20
    """The paper does not give its number of beams."""
    num_responses: int = 5
    """Responses a band under ``token_rank``."""
    max_new_tokens: int = 50
    every_n_steps: int = 10
    top_k: int = 20
    """Size of the token belief set whose mass is tracked."""
    batch_size: int = 64

    def __post_init__(self) -> None:
        least = (self.num_prompts, self.num_responses, self.max_new_tokens, self.every_n_steps, self.batch_size)
        if min(least) < 1 or self.top_k < 2 or self.num_beams < 5:
            raise ValueError("squeeze: counts and periods must be at least 1, top_k at least 2, num_beams at least 5")
