"""``python -m lit_unlearn.alternates conf=NAME [num=5]``: alternate answers for the forget questions."""

from __future__ import annotations

from functools import partial

from lit_unlearn.alternates.settings import AlternatesConfig
from lit_unlearn.command.console import Command, start
from lit_unlearn.config.load import FAMILIES, conf_listing, load

main = Command(
    "alternates",
    partial(load, run_name="{conf}_alternates", kind=AlternatesConfig),
    (
        "lit_unlearn.config.checks:check",
        "lit_unlearn.config.checks:check_alternates",
        "lit_unlearn.alternates.tell:tell",
    ),
    usage="conf=NAME [num=5] [key=value ...]",
    example="conf=methods/llama1b_altpo num=5",
    schema=AlternatesConfig,
    families=FAMILIES,
    listing=conf_listing,
)

if __name__ == "__main__":
    start(main)
