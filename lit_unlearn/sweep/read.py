"""A command line in, a sweep out; and what a sweep was started as, which nothing may change behind its back."""

from __future__ import annotations

import os
from dataclasses import asdict, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lit_unlearn.command.arguments import Arguments
from lit_unlearn.command.typed import read_overrides, typed
from lit_unlearn.config.files import SWEEPS, conf_directories, read_conf, read_yaml
from lit_unlearn.errors import UserError
from lit_unlearn.files import write_text
from lit_unlearn.sweep.plan import Sweep
from lit_unlearn.sweep.settings import OF_THE_CALL, SweepConfig

VERBS = {
    "list": "the points",
    "run": "work on them here, jobs=N at a time; what is finished is left alone",
    "submit": "as a SLURM array, limit=N tasks at a time, and a report at its end; dry_run=true only prints",
    "status": "what has become of each point",
    "collect": "one table of their numbers",
}
_WRITTEN = "sweep.yaml"
"""In the directory, what the sweep was started as."""
_TASK = "SLURM_ARRAY_TASK_ID"


def read(arguments: Arguments) -> Sweep:
    """``VERB SWEEP [key=value ...]``; a key that is none of a sweep's is a setting of all its runs.

    Raises:
        UserError: no such verb or sweep, a wrong setting of the sweep, a point that is not there, or another sweep was
            started in its directory.
    """
    verb, name = [*arguments.words, "", ""][:2]
    if verb not in VERBS:
        raise UserError(f"{f'{verb!r} is no verb' if verb else 'a verb is missing'}; choose among {', '.join(VERBS)}")
    if len(arguments.words) != 2:
        told = f"{verb} takes one sweep" if name else f"{verb} of which sweep?"
        raise UserError(f"{told} Give one of {', '.join(listed_sweeps())}, the path of a YAML file or a directory")
    path = _find(name)
    own = {field.name for field in fields(SweepConfig)}
    given = {key if key.split(".")[0] in own else f"settings.{key}": value for key, value in arguments.settings.items()}
    layers: list[dict[str, Any]] = [{"output_dir": f"runs/sweeps/{path.stem}"}, read_conf(path)]
    if path.name == _WRITTEN:
        if extra := sorted(given.keys() - set(OF_THE_CALL)):
            raise UserError(f"{name} was started and {extra[0]} is settled; give the sweep's file to start another")
        layers = [read_yaml(path), {"output_dir": str(path.parent)}]
    sweep = Sweep(typed(SweepConfig, str(path), *layers, read_overrides(given)), verb)
    above = next(path for path in (sweep.directory, *sweep.directory.absolute().parents) if path.exists())
    if not above.is_dir():
        raise UserError(
            f"output_dir={sweep.directory} cannot be made: {above} is a file; choose another output_dir=..."
        )
    sweep = _as_started(sweep)
    if verb == "run" and sweep.config.point is None and os.environ.get(_TASK):
        sweep = replace(sweep, config=replace(sweep.config, point=int(os.environ[_TASK])))
    if sweep.config.point is not None and not 0 <= sweep.config.point < len(sweep.points):
        raise UserError(f"point={sweep.config.point} is not there: points are 0 to {len(sweep.points) - 1}")
    if verb in ("status", "collect") and not is_begun(sweep):
        raise UserError(f"nothing was started in output_dir={sweep.directory}; run or submit the sweep first")
    return sweep


def begin(sweep: Sweep) -> Sweep:
    """Write down what is started, and on which day; points may have come since the last time."""
    began = replace(sweep, config=replace(sweep.config, day=sweep.config.day or date.today().isoformat()))
    passing = ("point", "dry_run", "output_dir", "debug")
    settled = {key: value for key, value in asdict(began.config).items() if key not in passing}
    try:
        sweep.directory.mkdir(parents=True, exist_ok=True)
        write_text(sweep.directory / _WRITTEN, OmegaConf.to_yaml(settled))
    except OSError as error:
        raise UserError(f"output_dir={sweep.directory} cannot be written to: {error.strerror}") from error
    return began


def is_begun(sweep: Sweep) -> bool:
    return (sweep.directory / _WRITTEN).is_file()


def _as_started(sweep: Sweep) -> Sweep:
    """With the day of its start.

    Raises:
        UserError: the sweep of this directory has other points; more of them are none.
    """
    path = sweep.directory / _WRITTEN
    if not is_begun(sweep):
        return sweep
    written = {**read_yaml(path), "output_dir": str(sweep.directory)}
    before = Sweep(typed(SweepConfig, str(path), written), sweep.verb)
    space = [config.search and config.search.space for config in (before.config, sweep.config)]
    kept = sweep.points[: len(before.points)]
    if kept != before.points or space[0] != space[1]:
        changed = next((old.number for old, new in zip(before.points, kept, strict=False) if old != new), len(kept))
        raise UserError(
            f"output_dir={sweep.directory} holds a sweep whose point {changed} was another: give the directory itself "
            "as SWEEP to go on with that one, or choose another output_dir=..."
        )
    return replace(sweep, config=replace(sweep.config, day=before.config.day))


def listed_sweeps() -> list[str]:
    """By name, those of ``conf/sweeps`` here and in the package."""
    return sorted({path.stem for directory in conf_directories() for path in (directory / SWEEPS).glob("*.yaml")})


def _find(name: str) -> Path:
    path = Path(name)
    if (path / _WRITTEN).is_file():
        return path / _WRITTEN
    if path.is_dir():
        raise UserError(f"{name} is a directory without {_WRITTEN}: no sweep was started there")
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{name}: no such file")
        return path
    bare = name.removeprefix(f"{SWEEPS}/")
    for directory in conf_directories():
        if (directory / SWEEPS / f"{bare}.yaml").is_file():
            return directory / SWEEPS / f"{bare}.yaml"
    raise UserError(f"sweep {name} is unknown; choose among {', '.join(listed_sweeps())}, or give a YAML file")
