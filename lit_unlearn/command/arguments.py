"""How arguments are written, for every command: ``[VERB] [PATH ...] [key=value ...]``, ``--help``, ``SECTION=?``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_unlearn.errors import UserError


@dataclass(frozen=True, slots=True)
class Arguments:
    """One command line."""

    words: tuple[str, ...]
    """A verb and paths, in order."""
    settings: dict[str, str]
    """``key=value``; of a key given twice the last value."""
    asked: tuple[str, ...]
    """Keys of ``SECTION=?``."""
    help: bool


def parse(argv: Sequence[str], words: bool = False) -> Arguments:
    """Sort a command line; ``words``: the command takes a verb or paths.

    Raises:
        UserError: an argument is none of those.
    """
    found: list[str] = []
    settings: dict[str, str] = {}
    for argument in argv:
        key, sign, value = argument.partition("=")
        if argument in ("--help", "-h"):
            continue
        if sign and key and not key.startswith("-"):
            settings[key] = value
        elif words and argument and not sign and not key.startswith("-"):
            found.append(argument)
        else:
            kinds = "a verb, paths and key=value" if words else "key=value, e.g. conf=NAME optim.lr=2e-5"
            raise UserError(f"cannot read {argument!r}: arguments are {kinds}; --help says more")
    asked = tuple(key for key, value in settings.items() if value == "?")
    for key in asked:
        del settings[key]
    return Arguments(tuple(found), settings, asked, "--help" in argv or "-h" in argv)
