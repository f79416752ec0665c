"""Our path through a step: the scoring engine, with all that is stored of the reference at hand."""

from __future__ import annotations

from torch import Tensor

from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.engine.states import StatesByRole
from lit_unlearn.models.blocks import checkpoint_blocks
from lit_unlearn.models.settings import Checkpointing
from lit_unlearn.reference.plan import reference_states
from lit_unlearn.types import Batch, Terms, union_of_needs


def step(
    engine: ScoringEngine, batch: Batch, terms: Terms, stored: StatesByRole, checkpointing: Checkpointing
) -> Tensor:
    """The weighted sum of the terms, differentiable."""
    asks = union_of_needs(terms).reference
    known = {role: stored[role] for role in asks if role in stored}
    known |= reference_states(batch, {role: ask for role, ask in asks.items() if role not in stored}, None)
    checkpoint_blocks(engine.model, checkpointing)
    loss = engine(batch, terms, known).loss
    engine.model.activation_checkpointing_disable()  # the plain path walks through the same model
    return loss
