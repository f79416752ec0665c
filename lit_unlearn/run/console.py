"""What the terminal shows: errors in one line, and of the libraries' chatter only what matters."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

from lit_unlearn.errors import UserError

_CHATTER = (
    r".*does not have many workers.*",
    r".*module\(s\) in eval mode.*",  # the frozen reference is meant to be
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*LeafSpec.*",
    r".*TreeSpec.*",
    r".*barrier\(\): using the device under current context.*",
)


def run(main: Callable[[list[str]], None]) -> None:
    """Run an entry point: user errors end with one line and exit code 2; ``debug=true`` shows the traceback."""
    argv = sys.argv[1:]
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("lit_unlearn").setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _CHATTER:
        warnings.filterwarnings("ignore", message)
    try:
        main(argv)
    except UserError as error:
        if "debug=true" in map(str.lower, argv):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        print("\ninterrupted: what was written is whole; resume=true goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
