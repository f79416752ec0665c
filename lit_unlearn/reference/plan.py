"""The frozen start of the policy: which of its scores are stored, and where the others come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.engine.states import StatesByRole, known_states
from lit_unlearn.errors import UserError
from lit_unlearn.reference.store import ReferenceStore
from lit_unlearn.types import LOGPS, Ask, Batch, Needs, Role


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """What is kept of the frozen start."""

    stored: Mapping[Role, Ask] = field(default_factory=dict)
    """Scored once, before the first step: log-probs, final hidden states or outputs of blocks of fixed rows."""
    resident: bool = False
    """Keep a second model: for what is not stored, in each step or at each refresh of the beliefs."""


def plan_reference(
    needs: Needs, choice: Literal["auto", "resident", "cached"], adapters: bool = False
) -> ReferencePlan:
    """The least memory that serves the terms; nothing where no term reads the reference.

    ``adapters``: the policy trains adapters only, so that without them it is its own reference.

    Raises:
        UserError: ``cached`` was asked for and a term reads sampled beliefs, or more than log-probs of alternates.
    """
    if choice == "resident":
        return ReferencePlan(resident=bool(needs.reference) and not adapters)
    stored = {role: ask for role, ask in needs.reference.items() if role in _SPLITS or _travels(role, ask)}
    rest = needs.reference.keys() - stored.keys()
    if choice == "cached" and rest and not adapters:
        raise UserError(
            f"model.reference=cached cannot serve the terms: what they read of the reference on the roles "
            f"{', '.join(sorted(rest))} is not known before the run; set model.reference=auto"
        )
    return ReferencePlan(stored, bool(rest) and not adapters)


_SPLITS = (Role.forget, Role.retain)
"""Roles whose rows are found by their example id; that of an alternate is its question's, and beliefs are new."""


def _travels(role: Role, ask: Ask) -> bool:
    """Log-probs go with the alternate rows they belong to."""
    return role == Role.alternate and ask == LOGPS


def reference_states(
    batch: Batch, asks: Mapping[Role, Ask], engine: ScoringEngine | None, store: ReferenceStore | None = None
) -> StatesByRole:
    """What travels with the rows or is stored, and a forward of ``engine``, the start itself, for the rest."""
    found = {}
    for role, ask in asks.items():
        if ask == LOGPS and batch[role].reference_logps is not None:
            found[role] = known_states(batch[role])
        elif store is not None and role in store.asks:
            found[role] = store.states(role, batch[role])
    missing = {role: ask for role, ask in asks.items() if role not in found}
    if not missing:
        return found
    assert engine is not None, f"no reference scores for {sorted(missing)}"
    with torch.no_grad():
        return found | engine.states(batch, missing)
