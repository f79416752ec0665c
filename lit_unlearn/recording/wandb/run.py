"""A run on Weights & Biases: where it stands there, how it is opened, resumed and closed."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_unlearn.errors import UserError
from lit_unlearn.recording.environment import without_secrets
from lit_unlearn.files import write_text

log = logging.getLogger(__name__)

Direction = Literal["max", "min"]
STEP = "trainer/global_step"
"""The x axis of every chart: optimizer steps."""


@dataclass(frozen=True)
class Identity:
    """Where a run stands on W&B and by what it is found there."""

    project: str
    group: str
    name: str
    job_type: str
    """What the process did in this W&B run: ``unlearn``, ``finetune_target``, ``finetune_retain``."""
    tags: tuple[str, ...] = ()


def wandb_logger(
    run_dir: Path,
    identity: Identity,
    mode: Literal["auto", "online", "offline", "disabled"],
    config: Mapping[str, Any],
    best: Mapping[str, Direction],
) -> WandbLogger | None:
    """Open a W&B run under ``run_dir/wandb`` that resumes with the run directory; None when disabled.

    ``auto`` follows WANDB_MODE where that is set, else it is online if WANDB_API_KEY is set, else offline, which
    touches no network; ``wandb sync`` uploads later. A server that does not answer makes an ``auto`` run offline.
    A process has one W&B run open at a time: ``close_wandb`` before the next.

    Args:
        run_dir: holds the W&B run's files and its id.
        identity: where it stands on W&B.
        mode: as ``logging.mode``.
        config: shown beside the run, without its secrets.
        best: keys whose largest or smallest value the run's summary shows beside the last one.

    Raises:
        UserError: ``online`` was asked for and W&B cannot be reached.
    """
    chosen = mode
    if mode == "auto":
        chosen = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    if chosen == "disabled":
        return None
    logger = _wandb_run(run_dir, identity, chosen, config)
    try:
        _connect(logger, best)  # now, not in the middle of the first evaluation
    except (wandb.Error, OSError) as error:
        if chosen != "online":
            raise
        if mode == "online":
            raise UserError(
                f"logging.mode=online, but W&B cannot be reached ({type(error).__name__}); use auto"
            ) from error
        log.warning("W&B cannot be reached (%s): this run is logged offline", type(error).__name__)
        wandb.teardown()
        logger = _wandb_run(run_dir, identity, "offline", config)
        _connect(logger, best)
    return logger


def wandb_address(logger: WandbLogger) -> str:
    """Where to see an online run; of an offline one, the command that uploads it."""
    run = logger.experiment
    return f"wandb sync {Path(run.dir).parent}" if run.offline else str(run.url)


@rank_zero_only
def close_wandb(loggers: Sequence[Logger]) -> None:
    """End the W&B run among ``loggers``, where there is one, so that this process can open another."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


@rank_zero_only
def _connect(logger: WandbLogger, best: Mapping[str, Direction]) -> None:
    for key, direction in best.items():  # all other keys: Lightning defines the x axis, the summary is the last value
        logger.experiment.define_metric(key, step_metric=STEP, summary=f"{direction},last")


def _wandb_run(run_dir: Path, identity: Identity, mode: str, config: Mapping[str, Any]) -> WandbLogger:
    logger = WandbLogger(
        project=identity.project,
        name=identity.name,
        group=identity.group,
        job_type=identity.job_type,
        tags=list(identity.tags),
        save_dir=run_dir,
        id=_wandb_id(run_dir),
        mode=mode,  # not WandbLogger's offline=True, which sets WANDB_MODE for the whole process
        config=without_secrets(config),
        # Code, command line, host and console may hold what nobody meant to upload; environment.json says what matters.
        settings=wandb.Settings(
            save_code=False,
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            console="off",
            silent=True,  # quiet still prints where the files lie, when the process ends; our own last lines say it
            init_timeout=30,
        ),
    )
    logger._wandb_init.pop("anonymous", None)  # passed on though nobody set it, and W&B warns that it has no effect
    return logger


def _wandb_id(run_dir: Path) -> str | None:
    """The id is kept with the run: resuming goes on in the same W&B run, overwriting starts a new one."""
    if rank_zero_only.rank != 0:
        return None
    file = run_dir / "wandb" / "run_id"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)  # W&B falls back to the temporary folder if it is missing
        write_text(file, uuid.uuid4().hex[:8])
    return file.read_text(encoding="utf-8")
