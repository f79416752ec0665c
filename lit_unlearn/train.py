"""``python -m lit_unlearn.train conf=NAME [key=value ...]``: unlearn a model and measure what it forgot."""

from __future__ import annotations

from lit_unlearn.command.console import Command, start
from lit_unlearn.config.load import FAMILIES, conf_listing, load
from lit_unlearn.config.schema import Config

main = Command(
    "train",
    load,
    (
        "lit_unlearn.config.checks:check",
        "lit_unlearn.config.checks:check_training",
        "lit_unlearn.run.unlearn:unlearn",
    ),
    example="conf=quickstart optim.lr=2e-3",
    schema=Config,
    families=FAMILIES,
    listing=conf_listing,
    resumes=True,
)

if __name__ == "__main__":
    start(main)
