"""A command line read and checked as the entry points do it."""

from lit_unlearn.command.arguments import parse
from lit_unlearn.config import checks
from lit_unlearn.config import load as loading
from lit_unlearn.config.schema import Config


def load(argv: list[str]) -> Config:
    config = loading.load(parse(argv))
    checks.check(config)
    return config
