"""``python -m lit_unlearn.finetune conf=NAME``: the target and the retain model, without unlearning."""

from __future__ import annotations

from functools import partial

from lit_unlearn.command.console import Command, start
from lit_unlearn.config.load import FAMILIES, conf_listing, load
from lit_unlearn.config.schema import Config

main = Command(
    "finetune",
    partial(load, run_name="{conf}_models"),
    ("lit_unlearn.config.checks:check", "lit_unlearn.config.checks:check_finetune", "lit_unlearn.run.target:finetune"),
    example="conf=quickstart finetune.max_epochs=10",
    schema=Config,
    families=FAMILIES,
    listing=conf_listing,
    resumes=True,
)

if __name__ == "__main__":
    start(main)
