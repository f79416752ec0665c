"""Numbers of the formats a run is written in, so that the files of another time are read or refused in one line.

A number goes up when what is written means something else, or is read differently, than before; a file without a
number is of format 1, which everything was before numbers were written.
"""

from __future__ import annotations

from lit_unlearn.errors import UserError

CONFIG = 2
"""``config.yaml``, key ``schema``. 2: the number itself, and ``privacy``; a run of format 1 was written in full."""
RECORDS = 2
"""A directory of records, in its file ``complete``. 2: the number itself, ``scores``, and a ``target`` that may be
null; in format 1 that file is empty, or not there."""
METRICS = 2
"""``metrics.json``, key ``schema`` beside the models. 2: the number itself."""


def check_schema(found: object, newest: int, where: str) -> int:
    """The number of a file that holds ``found`` in its place; None: it holds none.

    Raises:
        UserError: no number from 1 to ``newest``, the last that this version reads; begins with ``where``.
    """
    if found is None:
        return 1
    if type(found) is int and 1 <= found <= newest:
        return found
    wrong = "was written by a newer version" if type(found) is int and found > newest else "is no format"
    raise UserError(
        f"{where}: schema {found!r} {wrong}; this version of lit_unlearn reads 1 to {newest}, "
        "and a run's environment.json names the commit that wrote it"
    )
