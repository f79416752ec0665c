"""The rules of going on: what a run was started with, and what may not change when it is resumed."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from lit_unlearn.config.files import read_yaml
from lit_unlearn.config.schema import Config
from lit_unlearn.errors import UserError
from lit_unlearn.recording.environment import environment
from lit_unlearn.recording.outputs import write_json, write_text
from lit_unlearn.schemas import CONFIG

Run = TypeVar("Run", bound=Config)
STARTED = "LIT_UNLEARN_STARTED"
"""Environment variable by which a run's day reaches the processes it starts."""


def dated(config: Run) -> Run:
    """The run's day in ``data.prompt.date``: of its first start, if it is resumed, else today.

    Nothing else asks the clock for what a model reads, so that a run goes on tomorrow with the same tokens.
    """
    if config.data.prompt.date is not None:
        return config
    kept, day = Path(config.output_dir) / "config.yaml", None
    if config.resume and kept.is_file():
        day = OmegaConf.select(OmegaConf.load(kept), "data.prompt.date")
    if day is None:
        day = os.environ.setdefault(STARTED, date.today().isoformat())
    return replace(config, data=replace(config.data, prompt=replace(config.data.prompt, date=day)))


def check_resumed(run_dir: Path, config: Config) -> None:
    """What a run has cached, sampled and recorded belongs to the settings it was started with.

    Raises:
        UserError: the model, the data, the terms, the seed or the privacy are others now, or the run was started by
            a newer version.
    """
    if not (run_dir / "config.yaml").is_file():
        return  # nothing was started there, which open_run will say
    before = {"privacy": "full"} | read_yaml(run_dir / "config.yaml")  # before there was a choice
    now = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(asdict(config))))
    assert isinstance(now, dict)
    for section in ("model", "data", "terms", "beliefs", "finetune", "squeeze", "optim", "seed", "privacy"):
        if now[section] != before.get(section):
            raise UserError(
                f"resume=true with other settings in {section} than output_dir={config.output_dir} was started with; "
                f"leave the overrides as they were (see {run_dir / 'config.yaml'}) or start another run"
            )


@rank_zero_only
def write_start(run_dir: Path, config: Config) -> None:
    """What was asked for, and where it ran."""
    settings = {"schema": CONFIG} | asdict(replace(config, resume=False, overwrite=False))
    write_text(run_dir / "config.yaml", OmegaConf.to_yaml(settings))
    write_json(run_dir / "environment.json", environment())
