"""``python -m lit_unlearn``: the commands there are."""

import sys

from lit_unlearn.command.console import COMMANDS

if __name__ == "__main__":
    print("python -m lit_unlearn.COMMAND [VERB] [PATH ...] [key=value ...]; --help after any of them says more\n")
    for name, does in COMMANDS.items():
        print(f"  {name:<12}{does}")
    if sys.argv[1:] not in ([], ["--help"], ["-h"]):
        print(f"\nerror: a command is a module: python -m lit_unlearn.{sys.argv[1]}", file=sys.stderr)
        sys.exit(2)
