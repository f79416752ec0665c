"""The history of a run: every logged number in one CSV that survives interruption, and the same run on W&B."""

from __future__ import annotations

import csv
import logging
import math
import os
import uuid
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_unlearn.errors import UserError
from lit_unlearn.recording.environment import without_secrets
from lit_unlearn.recording.outputs import write_text

log = logging.getLogger(__name__)

HEADER = ("step", "metric", "value")
Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Metric name to its (step, value) points, by step."""

SQUEEZE_CURVES = {
    "squeeze/target": "target answer",
    "squeeze/high": "likely responses",
    "squeeze/mid": "middling responses",
    "squeeze/low": "unlikely responses",
    "squeeze/argmax": "most likely token",
}
"""Mean token log-probs of the squeezing probe, and what a legend calls them."""


class History(Logger):
    """Long-format, append-only CSV: a resumed run goes on in the same file and repeats the steps after its checkpoint.

    Args:
        run_dir: gets ``history.csv``.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.path = run_dir / "history.csv"
        self._opened = False

    @property
    def name(self) -> str:
        return ""  # with an empty version: what Lightning saves by itself lands in run_dir, not in a folder below

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None, f"a row of the history needs a step: {sorted(metrics)}"
        if not self._opened:
            self._open()
        with self.path.open("a", encoding="utf-8", newline="") as file:  # closed at once: flushed, nothing to lose
            rows = ((step, metric, repr(float(value))) for metric, value in metrics.items())
            csv.writer(file, lineterminator="\n").writerows(rows)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run directory keeps the whole config beside the history."""

    def _open(self) -> None:
        """Start the file, or cut the line that an interruption tore, so that the next one starts on its own."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            whole = self.path.read_bytes().rfind(b"\n") + 1
            os.truncate(self.path, whole)
        if not self.path.exists() or self.path.stat().st_size == 0:
            self.path.write_text(",".join(HEADER) + "\n", encoding="utf-8")
        self._opened = True


def read_history(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric name to its points sorted by step; of a step logged twice the later value counts."""
    text = path.read_text(encoding="utf-8")
    whole_lines = text[: text.rfind("\n") + 1].splitlines()  # a torn last line may read as a wrong number
    points: dict[str, dict[int, float]] = {}
    for row in csv.DictReader(whole_lines):
        points.setdefault(row["metric"], {})[int(row["step"])] = float(row["value"])
    return {metric: sorted(values.items()) for metric, values in points.items()}


def wandb_logger(
    run_dir: Path,
    project: str,
    name: str,
    mode: Literal["auto", "online", "offline", "disabled"],
    config: Mapping[str, Any],
) -> WandbLogger | None:
    """A W&B run under ``run_dir/wandb`` that resumes with the run directory; None when disabled.

    ``auto`` follows WANDB_MODE where that is set, else it is online if WANDB_API_KEY is set, else offline, which
    touches no network; ``wandb sync`` uploads later. A server that does not answer makes an ``auto`` run offline.
    The W&B run ends with the process; call ``wandb.finish()`` to start another one in the same process.

    Raises:
        UserError: ``online`` was asked for and W&B cannot be reached.
    """
    chosen = mode
    if mode == "auto":
        chosen = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    if chosen == "disabled":
        return None
    logger = _wandb_run(run_dir, project, name, chosen, config)
    if chosen != "online" or rank_zero_only.rank != 0:
        return logger
    try:
        logger.experiment  # noqa: B018  connects now, not in the middle of the first evaluation
    except (wandb.Error, OSError) as error:
        if mode == "online":
            raise UserError(
                f"logging.mode=online, but W&B cannot be reached ({type(error).__name__}); use auto"
            ) from error
        log.warning("W&B cannot be reached (%s): this run is logged offline", type(error).__name__)
        wandb.teardown()
        return _wandb_run(run_dir, project, name, "offline", config)
    return logger


def _wandb_run(run_dir: Path, project: str, name: str, mode: str, config: Mapping[str, Any]) -> WandbLogger:
    logger = WandbLogger(
        project=project,
        name=name,
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


def wandb_address(logger: WandbLogger) -> str:
    """Where to see an online run; of an offline one, the command that uploads it."""
    run = logger.experiment
    return f"wandb sync {Path(run.dir).parent}" if run.offline else str(run.url)


@rank_zero_only
def log_squeeze_plot(logger: WandbLogger, history: Curves) -> None:
    """Log the squeezing curves as one line plot, key ``squeeze/curves``; nothing where none was measured."""
    points = {
        label: [(step, value) for step, value in history.get(metric, ()) if math.isfinite(value)]
        for metric, label in SQUEEZE_CURVES.items()
    }
    points = {label: curve for label, curve in points.items() if curve}
    if not points:
        return
    plot = wandb.plot.line_series(
        xs=[[step for step, _ in curve] for curve in points.values()],
        ys=[[value for _, value in curve] for curve in points.values()],
        keys=list(points),
        title="Squeezing: mean token log-prob (nats)",
        xname="optimizer step",
    )
    last_step = max(step for curve in points.values() for step, _ in curve)
    logger.experiment.log({"squeeze/curves": plot, "trainer/global_step": last_step})
