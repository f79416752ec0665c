"""The frozen start of the policy: which of its scores are cached, and whether the model itself must stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from lit_unlearn.errors import UserError
from lit_unlearn.scoring import ScoringEngine
from lit_unlearn.states import StatesByRole, known_states
from lit_unlearn.types import LOGPS, Ask, Batch, Needs, Role


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """What is kept of the frozen start."""

    cached: frozenset[Role] = frozenset()
    """Roles whose answer log-probs are computed once, before the first step."""
    resident: bool = False
    """Keep the model: for full distributions each step, or for the log-probs of fresh beliefs at each refresh."""


def plan_reference(needs: Needs, choice: Literal["auto", "resident", "cached"]) -> ReferencePlan:
    """The least memory that serves the terms; nothing where no term reads the reference.

    Raises:
        UserError: ``cached`` was asked for and a term reads more than log-probs of fixed rows.
    """
    cacheable = frozenset(role for role, ask in needs.reference.items() if ask == LOGPS and role != Role.belief)
    rest = set(needs.reference) - cacheable
    if choice == "cached" and rest:
        raise UserError(
            f"model.reference=cached cannot serve the terms: on {', '.join(sorted(rest))} they read full "
            "distributions or sampled beliefs; set model.reference=auto"
        )
    if choice == "resident":
        return ReferencePlan(resident=bool(needs.reference))
    return ReferencePlan(cacheable, bool(rest))


def reference_states(batch: Batch, asks: Mapping[Role, Ask], engine: ScoringEngine | None) -> StatesByRole:
    """Log-probs that travel with the rows where they are enough, a forward of the resident model elsewhere."""
    known = {
        role: known_states(batch[role])
        for role, ask in asks.items()
        if ask == LOGPS and batch[role].reference_logps is not None
    }
    missing = {role: ask for role, ask in asks.items() if role not in known}
    if not missing:
        return known
    assert engine is not None, f"no reference scores for {sorted(missing)}"
    with torch.no_grad():
        return known | engine.states(batch, missing)
