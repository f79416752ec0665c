"""What a person looks at on Weights & Biases beside the curves: pictures, answers, and the squeezing plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_unlearn.recording.history import SQUEEZE_CURVES, SQUEEZE_INDICES, Curves
from lit_unlearn.recording.wandb.run import STEP


@rank_zero_only
def log_pictures(logger: WandbLogger, pictures: Sequence[Path], step: int) -> None:
    """Each as an image under ``plots/<file's name>``; W&B keeps those of earlier steps behind a slider."""
    images = {f"plots/{picture.stem}": wandb.Image(str(picture)) for picture in pictures}
    logger.experiment.log({**images, STEP: step})


@rank_zero_only
def log_answers(logger: WandbLogger, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
    """What the model says to the forget questions, as the table ``answers/forget``, whole at every step.

    W&B keeps a copy of a table among its files in the home folder until the run is synced.
    """
    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    logger.experiment.log({"answers/forget": table, STEP: step})


@rank_zero_only
def log_squeeze_plots(logger: WandbLogger, history: Curves) -> None:
    """Log the squeezing probe as two line plots, ``squeeze/curves`` and ``squeeze/indices``; none without numbers."""
    plots = {
        "squeeze/curves": (SQUEEZE_CURVES, "Forget prompts: mean token log-prob (nats)"),
        "squeeze/indices": (SQUEEZE_INDICES, "Likely responses against target: change since the start (nats)"),
    }
    for key, (labels, title) in plots.items():
        points = {
            label: [(step, value) for step, value in history.get(metric, ()) if math.isfinite(value)]
            for metric, label in labels.items()
        }
        points = {label: curve for label, curve in points.items() if curve}
        if not points:
            continue
        plot = wandb.plot.line_series(
            xs=[[step for step, _ in curve] for curve in points.values()],
            ys=[[value for _, value in curve] for curve in points.values()],
            keys=list(points),
            title=title,
            xname="optimizer step",
        )
        last_step = max(step for curve in points.values() for step, _ in curve)
        logger.experiment.log({key: plot, STEP: last_step})
