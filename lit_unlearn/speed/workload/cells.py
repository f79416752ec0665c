"""A cell: one set of terms on one model and one batch, with a plain step and ours that must give the same gradients."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lit_unlearn.config.terms import terms_from
from lit_unlearn.data.tokenize import pad
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.engine.states import StatesByRole
from lit_unlearn.memory.tokens import Tokens, count_tokens
from lit_unlearn.models.settings import Checkpointing
from lit_unlearn.reference.plan import plan_reference
from lit_unlearn.speed.settings import Lengths, Precision
from lit_unlearn.speed.workload import ours, plain
from lit_unlearn.speed.workload.models import Models
from lit_unlearn.speed.workload.objectives import CELLS
from lit_unlearn.speed.workload.rows import step_rows
from lit_unlearn.speed.workload.shapes import Shape
from lit_unlearn.types import LOGPS, Batch, Terms, union_of_needs

Path = Literal["plain", "ours"]
PATHS: tuple[Path, Path] = ("plain", "ours")


@dataclass(frozen=True, slots=True)
class Spec:
    """What a cell is made of; another process makes the same one from it."""

    shape: Shape
    objective: str
    num_rows: int
    lengths: Lengths
    seed: int
    device: torch.device
    precision: Precision
    checkpointing: Checkpointing = "none"
    """Of our path."""

    @property
    def terms(self) -> Terms:
        """RMU reads block 7, or the middle of a model that is not twice as deep."""
        written = copy.deepcopy(dict(CELLS[self.objective]))
        if self.objective == "rmu":
            for term in written.values():
                term["objective"]["layer"] = min(7, (self.shape.layers - 1) // 2)
        return terms_from(written)


@dataclass(frozen=True)
class Cell:
    """Both paths read the same policy, so a step must begin with gradients of None."""

    spec: Spec
    terms: Terms
    batch: Batch
    tokens: Tokens
    models: Models
    engine: ScoringEngine
    stored: StatesByRole
    """What a run would read of the reference from its store, beyond log-probs."""
    resident_in_run: Mapping[Path, bool]
    """Whether a whole run keeps a second model: the plain recipe wherever a term reads the reference."""

    def loss(self, path: Path, names: Collection[str] | None = None) -> Tensor:
        """Of the named terms, of all by default."""
        terms = {name: term for name, term in self.terms.items() if names is None or name in names}
        with autocast(self.spec):
            if path == "plain":
                return plain.loss(self.models.policy, self.models.start, self.batch, terms)
            return ours.step(self.engine, self.batch, terms, self.stored, self.spec.checkpointing)

    def step(self, path: Path) -> None:
        """Forward and backward."""
        self.loss(path).backward()


def autocast(spec: Spec) -> torch.autocast:
    return torch.autocast(spec.device.type, torch.bfloat16, enabled=spec.precision == "bf16-mixed")


def build(spec: Spec, models: Models) -> Cell:
    """Draw the rows and attach the reference's log-probs where our terms read them."""
    terms = spec.terms
    needs = union_of_needs(terms)
    rows = {role: step_rows(spec.lengths, spec.num_rows, spec.shape.vocab, spec.seed)[role] for role in needs.policy}
    start, stored = ScoringEngine(models.start), {}
    batch = {role: pad(block).to(spec.device) for role, block in rows.items()}
    for role, ask in needs.reference.items():
        with autocast(spec), torch.no_grad():
            if ask == LOGPS:
                known = score_answers(start, rows[role], spec.num_rows)
                told = [replace(row, reference_logps=k.logps) for row, k in zip(rows[role], known, strict=True)]
                batch[role] = pad(told).to(spec.device)
            else:
                stored |= start.states(batch, {role: ask})
    resident: dict[Path, bool] = {"plain": bool(needs.reference), "ours": plan_reference(needs, "auto").resident}
    tokens = count_tokens(rows)
    return Cell(spec, terms, batch, tokens, models, ScoringEngine(models.policy), stored, resident)
