"""Rows of the user's own: what a model must forget, what it must keep, and what it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lit_unlearn.benchmarks.base import Example, Probe
from lit_unlearn.benchmarks.file_rows import Columns, read_rows
from lit_unlearn.benchmarks.tofu_rows import spread
from lit_unlearn.errors import UserError
from lit_unlearn.types import Role


@dataclass(frozen=True)
class Files:
    """Questions with answers from JSON lines, JSON or CSV files.

    Each row is asked as it stands; without wrong answers or rewordings there is no truth ratio and no utility.

    Raises:
        UserError: a file or a row is faulty, or a row is to be forgotten and kept; told before a model is read.
    """

    forget: str
    """File of the rows to forget."""
    retain: str | None = None
    """File of rows to keep: what else the model knows, best near the subjects of the forget rows. Null: none, and no
    term may read them."""
    holdout: str | None = None
    """File of like rows that were never trained on, for comparison; null: none."""
    columns: Columns = field(default_factory=Columns)
    """``{prompt: NAME, response: NAME}``; null: ``question`` or ``prompt``, ``answer`` or ``response``."""
    max_probe: int | None = 100
    """Rows of the retain and of the holdout file that are asked, evenly spread over it; null: all."""

    def __post_init__(self) -> None:
        if self.max_probe is not None and self.max_probe < 1:
            raise UserError(f"data.benchmark.max_probe={self.max_probe}: must be 1 or more, or null for all rows")
        forget = {(row.prompt, row.response): row.id for row in self._rows["forget"]}
        for name in ("retain", "holdout"):
            for row in self._rows[name]:
                if (row.prompt, row.response) in forget:
                    raise UserError(
                        f"data.benchmark.{name}: row {row.id + 1} is also row "
                        f"{forget[row.prompt, row.response] + 1} of data.benchmark.forget; remove it from one of them"
                    )

    @cached_property
    def _rows(self) -> dict[str, list[Example]]:
        """Read once: a file that changes while a run goes on would give it two minds."""
        files = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout}
        return {
            name: [] if file is None else read_rows(file, f"data.benchmark.{name}", self.columns)
            for name, file in files.items()
        }

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("probability", "rouge", "extraction_strength", "exact_memorization", "repetition")

    def train_split(self, role: Role) -> Sequence[Example]:
        """Rows to unlearn on; ids are positions in the file."""
        if role not in (Role.forget, Role.retain):
            raise UserError(f"files has no rows for the role '{role}'; it has forget and retain")
        if role == Role.retain and self.retain is None:
            raise UserError(
                "a term reads retain rows, and data.benchmark.retain names no file: give one (retain=... in Python), "
                "or set terms.retain=null, with which nothing keeps the model from losing what else it knows"
            )
        return self._rows[role.value]

    def finetune_split(self, kind: str) -> Sequence[Example]:
        """Rows of the ``target`` or the ``retain`` model; ids count the rows returned."""
        if kind not in ("target", "retain"):
            raise UserError(f"files cannot finetune the model {kind!r}; choose one of target, retain")
        if kind == "retain" and self.retain is None:
            raise UserError("finetune makes a retain model, and data.benchmark.retain names no file to make it from")
        rows = [*self._rows["retain"], *(self._rows["forget"] if kind == "target" else ())]
        return [Example(i, row.prompt, row.response) for i, row in enumerate(rows)]

    def probes(self) -> Sequence[Probe]:
        kept = {name: self._asked(name) for name in ("retain", "holdout")}
        return [
            Probe("forget/answer", self._rows["forget"], generate=True),
            *(Probe(f"{name}/answer", rows, name == "retain") for name, rows in kept.items() if rows),
        ]

    def _asked(self, name: str) -> list[Example]:
        rows = self._rows[name]
        return [rows[position] for position in spread(len(rows), self.max_probe)]
