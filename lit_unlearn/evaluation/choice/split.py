"""Every probe cut in two by example id: one half to choose by, the other to report."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Records
from lit_unlearn.evaluation.choice.settings import SelectionConfig
from lit_unlearn.evaluation.collect import EncodedProbe

LEAST = 2
"""Examples of each probe in each half."""


@dataclass(frozen=True)
class Split:
    """Records are cut after they were made, so all probes are still asked in one pass."""

    selected: Mapping[str, frozenset[int]]
    """Ids of the selection half by set, the part of a probe's name before the slash: right, wrong and reworded answers
    to one example fall on the same side."""

    @classmethod
    def of(cls, probes: Iterable[EncodedProbe], config: SelectionConfig, seed: int) -> Split:
        """``seed``: where ``config`` names none.

        Raises:
            UserError: a probe has too few examples for one of the halves.
        """
        asked = {probe.name: {row.id for row in probe.rows} for probe in probes if probe.rows}
        ids_of: dict[str, set[int]] = {}
        for name, ids in asked.items():
            ids_of.setdefault(_set_of(name), set()).update(ids)
        seed = seed if config.seed is None else config.seed
        selected = {}
        for name, ids in sorted(ids_of.items()):
            order = sorted(ids)
            random.Random(f"selection {seed} {name}").shuffle(order)
            selected[name] = frozenset(order[: round(config.share * len(order))])
        for name, ids in asked.items():
            chosen = len(ids & selected[_set_of(name)])
            if min(chosen, len(ids) - chosen) < LEAST:
                raise UserError(
                    f"evaluation.selection cuts the probe {name} of {len(ids)} examples into {chosen} and "
                    f"{len(ids) - chosen}, and a half needs {LEAST}: give the probe more examples, or set "
                    "evaluation.keep_best=null and selection=null"
                )
        return cls(selected)

    def selection(self, records: Records) -> Records:
        return self._side(records, True)

    def report(self, records: Records) -> Records:
        return self._side(records, False)

    def as_lists(self) -> dict[str, list[int]]:
        """The selection half's ids, ascending, by set."""
        return {name: sorted(ids) for name, ids in self.selected.items()}

    def _side(self, records: Records, chosen: bool) -> Records:
        return {
            probe: [record for record in rows if (record.id in self.selected[_set_of(probe)]) == chosen]
            for probe, rows in records.items()
            if rows
        }


def _set_of(probe: str) -> str:
    return probe.partition("/")[0]
