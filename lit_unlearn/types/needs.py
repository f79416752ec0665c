"""What a term wants to know of the policy and of the frozen reference, role by role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lit_unlearn.types.rows import Role


@dataclass(frozen=True, slots=True)
class Ask:
    """What a term wants to know of a role beyond the label log-probs, which are always there."""

    top_k: int = 0
    """Largest log-probs of each position, with their token ids; 0: none."""
    logits: bool = False
    """The full float32 logits [N, V], alive only while one slice of rows is scored."""
    entropy: bool = False
    """Entropy of the next-token distribution, in nats."""
    attended: bool = False
    """Score every attended position, the prompt's included, instead of the answer's only."""
    hidden_layers: tuple[int, ...] = ()
    """Decoder blocks (0-based) whose outputs are wanted at the labelled positions."""
    logps: bool = True
    """False: no log-probs; where no term wants any, the forward stops at the last hidden layer asked for."""

    def __or__(self, other: Ask) -> Ask:
        return Ask(
            max(self.top_k, other.top_k),
            self.logits or other.logits,
            self.entropy or other.entropy,
            self.attended or other.attended,
            tuple(sorted({*self.hidden_layers, *other.hidden_layers})),
            self.logps or other.logps,
        )


LOGPS = Ask()
_NOTHING = Ask(logps=False)


@dataclass(frozen=True, slots=True)
class Needs:
    """The roles a term reads, of the policy and of the frozen reference."""

    policy: Mapping[Role, Ask]
    reference: Mapping[Role, Ask] = field(default_factory=dict)
    """Empty: no reference is kept."""

    def __or__(self, other: Needs) -> Needs:
        return Needs(_union(self.policy, other.policy), _union(self.reference, other.reference))


def _union(left: Mapping[Role, Ask], right: Mapping[Role, Ask]) -> dict[Role, Ask]:
    return {role: left.get(role, _NOTHING) | right.get(role, _NOTHING) for role in {**left, **right}}
