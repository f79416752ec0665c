"""The YAML files of the configuration: where they are found, what they inherit."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from lit_unlearn.errors import UserError
from lit_unlearn.schemas import CONFIG, check_schema


def conf_directories() -> list[Path]:
    """Where ``conf=NAME`` is looked up: the working directory's ``conf``, then the package's."""
    package = Path(__file__).parents[1]
    return [Path("conf"), package / "conf", package.parent / "conf"]


SWEEPS = "sweeps"
"""Folder of the files that list many runs; none of them is the conf of one."""


def conf_names() -> list[str]:
    """As ``conf=NAME`` takes them; those in folders with the folder, e.g. ``methods/llama1b_npo``."""
    found = ((directory, path) for directory in conf_directories() for path in directory.rglob("*.yaml"))
    names = {path.relative_to(directory).with_suffix("").as_posix() for directory, path in found}
    return sorted(name for name in names if not name.startswith(f"{SWEEPS}/"))


def find_conf(name: str) -> Path:
    """The file behind ``conf=NAME`` or ``conf=PATH``.

    Raises:
        UserError: there is none, or it is a sweep.
    """
    path = Path(name)
    if name.startswith(f"{SWEEPS}/") or f"/conf/{SWEEPS}/" in f"/{path.as_posix()}":
        raise UserError(f"conf={name} is a sweep, a list of runs, and not the conf of one; choose a conf it names")
    if name.endswith((".yaml", ".yml")):
        if not path.is_file():
            raise UserError(f"conf={name}: no such file")
        return path
    for directory in conf_directories():
        if (directory / f"{name}.yaml").is_file():
            return directory / f"{name}.yaml"
    if "/" in name and path.is_file():
        return path
    if "/" in name and path.is_dir():
        raise UserError(f"conf={name} is a directory; give the YAML file itself")
    raise UserError(f"conf={name} is unknown; {_nearest(name)}")


def listed_confs() -> str:
    """Those at the top by name, of each folder the number."""
    names = conf_names()
    folders = sorted({name.rpartition("/")[0] for name in names} - {""})
    counts = [f"{folder}/... ({sum(name.startswith(f'{folder}/') for name in names)})" for folder in folders]
    return ", ".join([*(name for name in names if "/" not in name), *counts])


def _nearest(name: str) -> str:
    """Names like it, by their last part, or all there is."""
    by_last = {known.rpartition("/")[2]: known for known in conf_names()}
    near = get_close_matches(name.rpartition("/")[2], by_last, cutoff=0.7)
    if near:
        return f"did you mean {' or '.join(by_last[last] for last in near)}?"
    return f"choose one of {listed_confs()}, or conf=PATH of a YAML file"


def read_conf(path: Path) -> dict[str, Any]:
    """A YAML file on top of its ``base:``, one parent and no more."""
    content = read_yaml(path)
    base = content.pop("base", None)
    if base is None:
        return content
    parent = path.parent / str(base)
    if not parent.is_file():
        raise UserError(f"{path}: base: {base} is not there")
    below = read_yaml(parent)
    if "base" in below:
        raise UserError(f"{path}: base: {base} has a base itself; one parent is the limit")
    make_way(below, content)
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(below, content)))


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of one file; a run's ``config.yaml`` is one too, whose ``schema`` is checked and left out.

    Raises:
        UserError: no YAML, no settings, or a schema of another time.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}), so no YAML; give the file of a conf") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: the file must hold key: value pairs")
    check_schema(content.pop("schema", None), CONFIG, str(path))
    return cast(dict[str, Any], content)


def make_way(written: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Take out of ``written`` what must not show under ``overrides``.

    Another objective or benchmark starts from its own defaults, without the old one's fields; and what may be written
    everywhere of one benchmark, as a run's ``config.yaml`` has it, says nothing of another.
    """
    other = _benchmark(overrides)
    if other is not None and other != _benchmark(written) and written.get("privacy") == "full":
        del written["privacy"]
    _drop_fields_of_other_name(written, overrides)


def _benchmark(settings: Any) -> str | None:
    """Its name; None: it is not said."""
    for key in ("data", "benchmark", "name"):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def _drop_fields_of_other_name(written: dict[str, Any], overrides: dict[str, Any]) -> None:
    for key, override in overrides.items():
        node = written.get(key)
        if not isinstance(node, dict) or not isinstance(override, dict):
            continue
        if key in ("objective", "benchmark") and override.get("name", node.get("name")) != node.get("name"):
            node.clear()
        _drop_fields_of_other_name(node, override)
