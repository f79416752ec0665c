"""Our path through a step: the scoring engine, with the reference's answer log-probs attached to the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_unlearn.parallel import global_mean
from lit_unlearn.reference import reference_states
from lit_unlearn.scoring import ScoringEngine
from lit_unlearn.types import Batch, Terms, union_of_needs


def step(engine: ScoringEngine, batch: Batch, terms: Terms, reference: ScoringEngine | None) -> Tensor:
    """The weighted sum of the terms, differentiable; ``reference`` only where log-probs are not enough."""
    states = reference_states(batch, union_of_needs(terms).reference, reference)
    sums = engine(batch, terms, states)
    means = [terms[name].weight * global_mean(total.value, total.weight)[0] for name, total in sums.items()]
    return torch.stack(means).sum()
