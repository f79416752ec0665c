"""``python -m lit_unlearn.evaluate conf=NAME model.path=DIR``: put the benchmark's questions to a saved model."""

from __future__ import annotations

from functools import partial

from lit_unlearn.command.console import Command, start
from lit_unlearn.config.load import FAMILIES, conf_listing, load
from lit_unlearn.config.schema import Config

main = Command(
    "evaluate",
    partial(load, run_name="{conf}_evaluation"),
    (
        "lit_unlearn.config.checks:check",
        "lit_unlearn.config.checks:check_evaluation",
        "lit_unlearn.run.evaluate:evaluate",
    ),
    example="conf=llama1b_tofu model.path=DIR",
    schema=Config,
    families=FAMILIES,
    listing=conf_listing,
)

if __name__ == "__main__":
    start(main)
