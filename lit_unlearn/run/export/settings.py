"""The settings of a run as its model card may show them: without secrets, without this machine's places."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from lit_unlearn.benchmarks import BENCHMARKS
from lit_unlearn.config.schema import Config
from lit_unlearn.recording.environment import without_secrets

NOT_TOLD = "<not told>"
_OF_THE_MACHINE = ("output_dir", "resume", "overwrite", "check", "debug", "logging", "trainer.num_threads")
_OF_THE_MACHINE += ("trainer.accelerator", "model.reference_cache", "export.push_to_hub", "export.private")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_WORD = re.compile(r"[\w.+-]{1,40}")


def hub_id(path: str | None) -> str | None:
    """``path`` where it was read from the Hub, by which it is known to others; None where it is this machine's."""
    return path if path is not None and _HUB_ID.fullmatch(path) and not _is_here(path) else None


def told_settings(config: Config) -> dict[str, Any]:
    """What is not as by default, but for what only concerns the machine.

    Of a place the last name is left. Where ``privacy`` keeps text in the run directory, neither names of files nor
    sentences are told, and of a benchmark of the user's own no words at all.
    """
    settings: dict[str, Any] = without_secrets(_changed(config, Config()))  # type: ignore[assignment]
    if "data" in settings and "benchmark" in settings["data"] and not config.uploads_text:
        settings["data"]["benchmark"] = _without_words(settings["data"]["benchmark"])
    return _told(settings, config.uploads_text)


def benchmark_name(config: Config) -> str:
    """By which the forget set may be called."""
    name = str(config.data.benchmark.get("name"))
    if name in BENCHMARKS:
        return name
    return name.rpartition(":")[2] if config.uploads_text else "rows of the owner's own"


def _changed(now: Any, default: Any, above: str = "") -> dict[str, Any]:
    found = {}
    for field in fields(now):
        key, value, usual = f"{above}{field.name}", getattr(now, field.name), getattr(default, field.name)
        if key in _OF_THE_MACHINE or (value == usual and key != "data.benchmark"):
            continue
        if is_dataclass(value) and is_dataclass(usual):
            found[field.name] = _changed(value, usual, f"{key}.")
        else:
            found[field.name] = asdict(now)[field.name]
    return {name: value for name, value in found.items() if value != {}}


def _without_words(benchmark: Mapping[str, Any]) -> dict[str, Any]:
    name = benchmark.get("name")
    numbers = {key: value for key, value in benchmark.items() if isinstance(value, int | float) or value is None}
    return {"name": name if name in BENCHMARKS else NOT_TOLD, **numbers}


def told_objectives(config: Config) -> dict[str, str]:
    """Each term's objective with what of its fields was set, told as ``told_settings`` tells it."""
    found = {}
    for name, term in told_settings(config)["terms"].items():
        if term is not None:
            fields_of = dict(term["objective"])
            kind = fields_of.pop("name")
            found[name] = f"{kind}({', '.join(f'{key}={value}' for key, value in fields_of.items())})"
    return found


def _is_here(text: str) -> bool:
    """Whether it names a place of this machine; any text may be asked."""
    try:
        return os.path.exists(os.path.expanduser(text))
    except ValueError:  # a zero byte
        return False


def _told(node: Any, full: bool) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _told(value, full) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_told(value, full) for value in node]
    if not isinstance(node, str):
        return node
    is_place = _is_here(node) or ("/" in node and not hub_id(node) and not re.search(r"\s", node))
    if full:
        return Path(node).name if is_place else node
    return node if not is_place and (_WORD.fullmatch(node) or hub_id(node)) else NOT_TOLD
