"""A command line in, a run's configuration out; no torch is needed to answer a wrong key."""

from __future__ import annotations

from typing import Any, TypeVar

from lit_unlearn.command.arguments import Arguments
from lit_unlearn.command.typed import read_overrides, typed
from lit_unlearn.config.files import find_conf, listed_confs, make_way, read_conf
from lit_unlearn.config.schema import Config
from lit_unlearn.errors import UserError

Run = TypeVar("Run", bound=Config)
FAMILIES = {
    "terms.*.objective": "lit_unlearn.objectives:OBJECTIVES",
    "data.benchmark": "lit_unlearn.benchmarks:BENCHMARKS",
    "schedules": "lit_unlearn.callbacks.schedules:SCHEDULES",
    "evaluation.metrics": "lit_unlearn.evaluation.metrics:METRICS",
}
"""Settings whose value is chosen by name, and the tables of contents they are chosen from."""


def load(arguments: Arguments, run_name: str = "{conf}", kind: type[Run] = Config) -> Run:
    """``conf=NAME`` or ``conf=PATH``, then ``key=value`` overrides; ``run_name`` is the run directory's by default.

    ``kind``: the schema, of a command that has settings of its own.

    Raises:
        UserError: an unknown conf, key, type or value, with the full key and the valid choices.
    """
    settings = dict(arguments.settings)
    if "conf" not in settings:
        raise UserError(f"conf=NAME is missing; choose one of {listed_confs()}, or conf=PATH of a YAML file")
    conf = settings.pop("conf")
    return configured(conf, read_overrides(settings), run_name=run_name, kind=kind)


def configured(conf: str, *overrides: dict[str, Any], run_name: str = "{conf}", kind: type[Run] = Config) -> Run:
    """As ``load``, with the overrides as nested values, later ones winning."""
    path = find_conf(conf)
    written = {"output_dir": f"runs/{run_name.format(conf=path.stem)}"} | read_conf(path)
    for layer in overrides:
        make_way(written, layer)
    return typed(kind, str(path), written, *overrides)


def conf_listing() -> dict[str, str]:
    """The confs found from here, for ``--help``."""
    return {"confs": listed_confs()}
