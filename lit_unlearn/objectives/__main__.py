"""``python -m lit_unlearn.objectives``: the table of objectives."""

from __future__ import annotations

from lit_unlearn.command.arguments import Arguments
from lit_unlearn.command.console import Command, start
from lit_unlearn.errors import UserError
from lit_unlearn.objectives.table import table


def load(arguments: Arguments) -> str:
    if arguments.settings:
        raise UserError(f"objectives takes no arguments, not {next(iter(arguments.settings))}=...")
    return table()


main = Command("objectives", load, ("builtins:print",), usage="")

if __name__ == "__main__":
    start(main)
