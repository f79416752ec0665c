"""What the callbacks that move term weights, row weights or gradients during training have in common."""

from __future__ import annotations

from collections.abc import Iterable

import lightning as L

from lit_unlearn.types import Terms


class Schedule(L.Callback):
    """A dataclass whose fields are its config; it moves what a term of the run carries, never the terms themselves."""

    @property
    def moves(self) -> str:
        """What it sets, in words; two schedules of a run may not move the same."""
        raise NotImplementedError

    def check(self, terms: Terms, max_epochs: int) -> None:
        """Compare the fields with the run, before anything is written.

        Raises:
            ValueError: a field names what the run does not have, or would have no effect in it.
        """


def check_terms(field: str, names: Iterable[str], terms: Terms) -> None:
    """Raise ValueError for the first name that is no term of the run."""
    for name in names:
        if name not in terms:
            raise ValueError(f"{field}: {name!r} is no term of this run; choose among {', '.join(sorted(terms))}")
