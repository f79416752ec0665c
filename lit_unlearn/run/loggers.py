"""Where the numbers of a run go: history.csv, and W&B, where it says what was done, to what, on what."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from lit_unlearn.config.schema import Config
from lit_unlearn.config.terms import build_terms
from lit_unlearn.display.screen import show
from lit_unlearn.evaluation.report import ROWS
from lit_unlearn.recording.history import History
from lit_unlearn.recording.keys import evaluation_key
from lit_unlearn.recording.settings import MAX_TAG
from lit_unlearn.recording.wandb.run import Direction, Identity, wandb_logger
from lit_unlearn.types import Role, union_of_needs


def build_loggers(config: Config, directory: Path, job_type: str = "unlearn") -> list[Logger]:
    """``directory`` gets ``history.csv`` and the W&B run's files; a finetuning has one of its own."""
    best: dict[str, Direction] = {}
    if job_type == "unlearn":
        best = {evaluation_key(name): "max" if better == "^" else "min" for name, better in ROWS.items()}
    logger = wandb_logger(directory, identity(config, job_type), config.logging.mode, asdict(config), best)
    return [History(directory), *([logger] if logger else []), Live()]


def identity(config: Config, job_type: str) -> Identity:
    run = Path(config.output_dir).resolve().name
    name = run if job_type == "unlearn" else f"{run}-{job_type}"
    about = (method_tags(config) if job_type == "unlearn" else []) + [model_tag(config), benchmark_tag(config)]
    tags = dict.fromkeys([*(tag[:MAX_TAG] for tag in about), *config.logging.tags])
    return Identity(config.logging.project, config.logging.group or run, name, job_type, tuple(tags))


def method_tags(config: Config) -> list[str]:
    """The objectives as one tag, ``npo+nll``, then ``bss`` where sampled beliefs are read, and each schedule."""
    names = [term.objective["name"].rpartition(":")[2] for term in config.terms.values() if term is not None]
    beliefs = ["bss"] if Role.belief in union_of_needs(build_terms(config)).policy else []
    return ["+".join(dict.fromkeys(names)), *beliefs, *config.schedules]


def model_tag(config: Config) -> str:
    """The last part of a model's path or Hub id, or the name of a model that needs none."""
    return config.model.name if config.model.path is None else Path(config.model.path).resolve().name


def benchmark_tag(config: Config) -> str:
    """``tofu-forget10``, or the name alone where it has no named forget splits."""
    fields = config.data.benchmark
    return "-".join(str(fields[key]).rpartition(":")[2] for key in ("name", "forget_split") if key in fields)


class Live(Logger):
    """Keeps nothing; Lightning has made plain numbers of what it is given, for the other loggers."""

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        show(metrics, step or 0)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nobody watches settings."""
