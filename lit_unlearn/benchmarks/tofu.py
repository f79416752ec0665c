"""TOFU: 200 fictitious authors of 20 questions each, the last 1, 5 or 10 percent of them to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from lit_unlearn.benchmarks.base import Example, Probe
from lit_unlearn.benchmarks.tofu_files import read_split, where_is
from lit_unlearn.benchmarks.tofu_rows import METRICS, Rows, examples_of, keep_spread, probes_of, spread
from lit_unlearn.errors import UserError
from lit_unlearn.types import Role

ForgetSplit = Literal["forget01", "forget05", "forget10"]


@dataclass(frozen=True)
class Tofu:
    """TOFU, Maini et al., COLM 2024, https://arxiv.org/abs/2401.06121.

    Raises:
        UserError: A field is out of range; later, when rows are read, a file is missing or not as the Hub's.
    """

    forget_split: ForgetSplit
    """The share of authors to forget, in percent; the retain split is the rest (forget10 -> retain90)."""
    root: str | None = None
    """Folder with a local copy in the Hub's layout, ``<root>/<split>.json``; None: read locuslab/TOFU from the Hub."""
    max_retain: int | None = None
    """Train on this many retain rows (for small studies); None: all.

    First the rows of the retain probe, so that what is asked was taught, then others evenly spread over all authors.
    The retain probe is cut to this many rows too.
    """
    max_probe: int | None = None
    """Rows of each probe set but the forget set, evenly spread over it (for small studies); None: all."""

    def __post_init__(self) -> None:
        if self.forget_split not in get_args(ForgetSplit):
            choices = ", ".join(get_args(ForgetSplit))
            raise UserError(f"data.benchmark.forget_split={self.forget_split!r} is unknown; choose one of {choices}")
        for name, limit in (("max_retain", self.max_retain), ("max_probe", self.max_probe)):
            if limit is not None and limit < 1:
                raise UserError(f"data.benchmark.{name}={limit}: must be 1 or more, or null for all rows")

    @property
    def metrics(self) -> tuple[str, ...]:
        return METRICS

    @property
    def retain_split(self) -> str:
        """Name of the split that goes with ``forget_split``."""
        return f"retain{100 - int(self.forget_split[-2:])}"

    def train_split(self, role: Role) -> Sequence[Example]:
        """Rows to unlearn on; ids are positions in the whole split, whatever ``max_retain`` leaves out of it."""
        _check_disjoint(self.root, self.forget_split, self.retain_split)
        if role == Role.forget:
            return examples_of(read_split(self.root, self.forget_split))
        if role == Role.retain:
            return examples_of(self._retain_rows())
        raise UserError(f"tofu has no rows for the role '{role}'; it has forget and retain")

    def finetune_split(self, kind: str) -> Sequence[Example]:
        """Rows of the ``target`` or the ``retain`` model; ids count the rows returned."""
        if kind not in ("target", "retain"):
            raise UserError(f"tofu cannot finetune the model {kind!r}; choose one of target, retain")
        roles = (Role.retain, Role.forget) if kind == "target" else (Role.retain,)
        rows = [example for role in roles for example in self.train_split(role)]
        return [Example(i, row.prompt, row.response) for i, row in enumerate(rows)]

    def probes(self) -> Sequence[Probe]:
        return probes_of(
            forget=read_split(self.root, f"{self.forget_split}_perturbed"),
            retain=self._retain_probe(),
            real_authors=keep_spread(read_split(self.root, "real_authors_perturbed"), self.max_probe),
            world_facts=keep_spread(read_split(self.root, "world_facts_perturbed"), self.max_probe),
            holdout=keep_spread(read_split(self.root, self.forget_split.replace("forget", "holdout")), self.max_probe),
        )

    def _retain_probe(self) -> Rows:
        limits = [limit for limit in (self.max_probe, self.max_retain) if limit is not None]
        return keep_spread(read_split(self.root, "retain_perturbed"), min(limits, default=None))

    def _retain_rows(self) -> Rows:
        rows = read_split(self.root, self.retain_split)
        if self.max_retain is None:
            return rows
        position_of = {row.pair: position for position, row in rows.items()}
        probed = set()
        for position, row in self._retain_probe().items():
            if row.pair not in position_of:
                where = where_is(self.root, "retain_perturbed", position)
                raise UserError(
                    f"{where}: question and answer are not a row of {self.retain_split}; take both files from one copy"
                )
            probed.add(position_of[row.pair])
        others = [position for position in rows if position not in probed]
        chosen = probed.union(others[i] for i in spread(len(others), self.max_retain - len(probed)))
        return {position: rows[position] for position in sorted(chosen)}


@cache
def _check_disjoint(root: str | None, forget_split: str, retain_split: str) -> None:
    retain = {row.pair: position for position, row in read_split(root, retain_split).items()}
    for position, row in read_split(root, forget_split).items():
        if row.pair in retain:
            raise UserError(
                f"forget rows found in the retain set: {where_is(root, forget_split, position)} is also "
                f"{where_is(root, retain_split, retain[row.pair])}; a row can be in one of the two only"
            )
