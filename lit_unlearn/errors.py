"""What goes wrong by the user's hand, and how it is told: one clear line, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A fault the user can mend; the message says what, where and what to do."""


class NonFiniteLoss(UserError):
    """A term of the loss is NaN or infinite; the weights have not moved on it."""


def run(main: Callable[[list[str]], None]) -> None:
    """Run an entry point: user errors end with one line and exit code 2; ``debug=true`` shows the traceback."""
    argv = sys.argv[1:]
    try:
        main(argv)
    except UserError as error:
        if "debug=true" in argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "interrupted; the checkpoints written so far are whole, resume=true goes on from the last", file=sys.stderr
        )
        sys.exit(130)
