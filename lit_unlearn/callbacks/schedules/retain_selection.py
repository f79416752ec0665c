"""Target-aware selection of retain rows: TARF (https://arxiv.org/abs/2406.08288)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning as L

from lit_unlearn.callbacks.schedules.schedule import Schedule
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.parallel import gather_by_key, rank, world_size
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.types import Role, Terms, union_of_needs

log = logging.getLogger(__name__)


@dataclass(eq=False)
class RetainSelection(Schedule):
    r"""``tau(x, y, t) = 1 if t >= t1 and I_con(x, y) < beta else 0`` multiplies the weight of each retain row.

    ``I_con(x, y) = |CE(theta_o) - CE(theta_t1)|``, CE the mean over the answer's tokens, theta_o the policy's start:
    rows that move along with the forget rows before t1 hold what is to be forgotten and are left out for good.
    The mean is over the rows that count, where the paper divides by all rows: with a share kept of s the retain term
    is 1 / s larger here. Before t1 no retain row counts. Chosen at the end of epoch t1 - 1, so the choice is in that
    epoch's checkpoint.
    Logged once: ``selection/<role>_kept``, the number of rows, and ``selection/<role>_max_influence``, theirs.
    """

    start_epoch: int = 1
    """t1, in epochs; the paper names no value."""
    keep_fraction: float | None = None
    """Share of the rows kept, those that moved least: beta as a quantile. Set this or ``max_influence``."""
    max_influence: float | None = None
    """beta, in nats per token."""
    role: Role = Role.retain
    batch_size: int = 32
    """Rows scored at once, on each process."""

    def __post_init__(self) -> None:
        if self.start_epoch < 1 or self.batch_size < 1:
            raise ValueError(f"start_epoch={self.start_epoch} and batch_size={self.batch_size} must be at least 1")
        if (self.keep_fraction is None) == (self.max_influence is None):
            raise ValueError("set one of keep_fraction and max_influence")
        if self.keep_fraction is not None and not 0 < self.keep_fraction <= 1:
            raise ValueError(f"keep_fraction={self.keep_fraction} must be in (0, 1]")
        if self.max_influence is not None and self.max_influence <= 0:
            raise ValueError(f"max_influence={self.max_influence} must be above 0")
        self.start: dict[int, float] = {}  # CE of each row under the policy's start
        self.kept: list[int] | None = None  # example ids; None before t1
        self.weights: dict[int, float] = {}  # of the rows as they came, this start's only

    @property
    def moves(self) -> str:
        return f"the weights of {self.role.value} rows"

    def check(self, terms: Terms, max_epochs: int) -> None:
        roles = set(union_of_needs(terms).policy) - {Role.belief, Role.alternate}
        if self.role not in roles:
            names = ", ".join(sorted(roles))
            raise ValueError(
                f"role: no term of this run reads {self.role.value} rows from a split; choose among {names}"
            )
        if self.start_epoch >= max_epochs:
            raise ValueError(f"start_epoch={self.start_epoch} must be below the run's {max_epochs} epochs")

    @property
    def state_key(self) -> str:
        return self._generate_state_key(role=self.role.value)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows = self._rows(trainer)
        self.weights = {row.id: row.weight for row in rows}
        if not self.start:
            self.start = self._cross_entropy(pl_module, rows)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._weigh(self._rows(trainer))  # some strategies load a checkpoint only after the start of the fit

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.kept is not None or trainer.current_epoch + 1 < self.start_epoch:
            return
        rows = self._rows(trainer)
        now = self._cross_entropy(pl_module, rows)
        influence = {id: abs(self.start[id] - now[id]) for id in now}
        self.kept = self.choose(influence)
        self._weigh(rows)
        largest = max((influence[id] for id in self.kept), default=0.0)
        log.log(
            logging.INFO if self.kept else logging.WARNING,
            "%d of %d %s rows are kept (influence at most %.3g)", len(self.kept), len(rows), self.role.value, largest,
        )  # fmt: skip
        stats = {f"selection/{self.role}_kept": float(len(self.kept)), f"selection/{self.role}_max_influence": largest}
        for logger in pl_module.loggers:
            logger.log_metrics(stats, step=pl_module.global_step)

    def choose(self, influence: Mapping[int, float]) -> list[int]:
        """Ids of the rows to keep; of equal influence, the lower id first."""
        ranked = sorted(influence, key=lambda id: (influence[id], id))
        if self.keep_fraction is not None:
            return sorted(ranked[: max(1, round(self.keep_fraction * len(ranked)))])
        assert self.max_influence is not None
        return sorted(id for id in ranked if influence[id] < self.max_influence)

    def _rows(self, trainer: L.Trainer) -> list[Encoded]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, UnlearnData)
        return data.rows[self.role]

    def _weigh(self, rows: list[Encoded]) -> None:
        kept = set(self.kept or ())
        rows[:] = [replace(row, weight=self.weights[row.id] if row.id in kept else 0.0) for row in rows]

    def _cross_entropy(self, pl_module: L.LightningModule, rows: list[Encoded]) -> dict[int, float]:
        """Mean over the answer's tokens of each row; every rank scores its share and knows all."""
        assert isinstance(pl_module, UnlearnModule)
        mine = rows[rank() :: world_size()]
        with pl_module.reading():
            scored = score_answers(pl_module.engine, mine, self.batch_size, f"cross-entropy of {self.role.value}")
        return gather_by_key({row.id: -answer.mean_logp for row, answer in zip(mine, scored, strict=True)})

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start, self.kept = state_dict["start"], state_dict["kept"]
