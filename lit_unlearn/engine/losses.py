"""Terms on slices of rows: their losses, what the weights of these add up to, and exact means over ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lit_unlearn.engine.states import States, StatesByRole, blank_scores, label_states, scores_of
from lit_unlearn.parallel import all_reduce_sum
from lit_unlearn.types import Batch, Loss, Role, Terms, union_of_needs

LOGITS_COPIES = 6
"""Buffers of a slice's logits that an objective over full distributions may hold at once, of policy and reference."""
Plan = Callable[[Sequence[States], int], list[tuple[int, int]]]
Sums = dict[str, dict[str, Tensor]]
"""Term -> weighted sums over the rows seen so far: of ``loss``, of each statistic, and of the ``weight`` itself."""


def losses_of(terms: Terms, policy: StatesByRole, reference: StatesByRole) -> dict[str, Loss]:
    needs = union_of_needs(terms)
    with torch.no_grad():  # first: the policy's logits stay for the backward, these go
        reference_scores = {role: scores_of(reference[role], ask) for role, ask in needs.reference.items()}
    policy_scores = {role: scores_of(policy[role], ask) for role, ask in needs.policy.items()}
    return {name: term.objective(policy_scores, reference_scores) for name, term in terms.items()}


@torch.no_grad()
def weights_of(terms: Terms, batch: Batch, width: int, vocabulary: int, plan: Plan) -> Tensor:
    """[terms] what the weights of each term's losses add up to here, read off the labels alone, before any forward."""
    totals = []
    for name, term in terms.items():
        needs, total = term.objective.needs, torch.zeros((), device=next(iter(batch.values())).labels.device)
        policy, reference = (
            {role: label_states(batch[role], ask, width) for role, ask in asks.items()}
            for asks in (needs.policy, needs.reference)
        )
        for cut in plan([policy[role] for role in needs.policy], logits_copies({name: term})):
            scores = [
                {role: blank_scores(known[role].slice(*cut), ask, vocabulary) for role, ask in asks.items()}
                for known, asks in ((policy, needs.policy), (reference, needs.reference))
            ]
            total = total + term.objective(*scores).weights.sum()
        totals.append(total)
    return torch.stack(totals)


def add_up(sums: Sums, losses: Mapping[str, Loss]) -> None:
    for name, loss in losses.items():
        new = {key: (loss.weights * stat).sum() for key, stat in loss.stats.items()}
        new |= {"loss": (loss.weights * loss.values.detach()).sum(), "weight": loss.weights.sum()}
        known = sums.setdefault(name, {})
        sums[name] = {key: known[key] + value if key in known else value for key, value in new.items()}


def means_of(sums: Sums, overall: Tensor, local: Tensor) -> dict[str, float]:
    """``<term>/<name>`` -> mean over all ranks, in one exchange.

    Raises:
        ValueError: the weights of a term did not add up to ``local`` on some rank.
    """
    safe = torch.where(overall > 0, overall, 1.0)
    numbers = {
        f"{name}/{key}": (value, safe[index])
        for index, (name, own) in enumerate(sums.items())
        for key, value in own.items()
        if key != "weight"
    }
    drift = (torch.stack([own["weight"] for own in sums.values()]) - local).abs() / local.clamp(min=1.0)
    totals = all_reduce_sum(torch.cat([torch.stack([value for value, _ in numbers.values()]), drift]))
    divisors = torch.cat([torch.stack([weight for _, weight in numbers.values()]), torch.ones_like(drift)])
    means = (totals / divisors).tolist()
    for name, difference in zip(sums, means[len(numbers) :], strict=True):
        if difference > 1e-3:
            raise ValueError(f"term {name}: the weights of its losses depend on more than labels and row weights")
    return dict(zip(numbers, means, strict=False))


def groups_of(terms: Terms) -> list[list[str]]:
    """Names of terms that share a role, directly or through another term: they are scored slice by slice together."""
    groups: list[tuple[set[Role], list[str]]] = []
    for name, term in terms.items():
        roles, names = set(term.objective.needs.policy), [name]
        for group in [group for group in groups if group[0] & roles]:
            groups.remove(group)
            roles, names = roles | group[0], group[1] + names
        groups.append((roles, names))
    return [names for _, names in groups]


def logits_copies(terms: Terms) -> int:
    asks = union_of_needs(terms).policy.values()
    return LOGITS_COPIES if any(ask.logits for ask in asks) else 2 if any(ask.entropy for ask in asks) else 1
