"""The rules of going on: what a run was started with, and what may not change when it is resumed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from lit_unlearn.config.files import read_yaml
from lit_unlearn.config.schema import Config
from lit_unlearn.errors import UserError
from lit_unlearn.recording.environment import environment
from lit_unlearn.recording.outputs import write_json, write_text
from lit_unlearn.schemas import CONFIG


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
