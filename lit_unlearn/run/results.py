"""What a finished run leaves behind: metrics.json, the squeezing plots on W&B, the table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from lit_unlearn.evaluation.report import table
from lit_unlearn.files import write_json
from lit_unlearn.models.rounding import Rounding
from lit_unlearn.recording.history import read_history
from lit_unlearn.recording.wandb.page import log_squeeze_plots
from lit_unlearn.recording.wandb.run import wandb_address
from lit_unlearn.schemas import METRICS

MODELS = ("original", "unlearned", "retain_model")
SHOWN = ("metrics.json", "history.csv", "plots", "records", "model")
"""What a person opens next; the rest of the run directory stands beside it."""


def write_results(
    run_dir: Path,
    numbers: Mapping[str, Mapping[str, float]],
    loggers: Sequence[Logger],
    rounding: Rounding | None = None,
) -> str:
    """The comparison as text; called by one rank. ``rounding``: what the export's dtype did to the policy."""
    columns = {name: numbers[name] for name in MODELS if name in numbers}
    unknown = {"forget_quality": None}  # without a retain model; the key is there all the same
    written = {name: unknown | dict(columns[name]) if name in columns else None for name in MODELS}
    history = read_history(run_dir / "history.csv")
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            log_squeeze_plots(logger, history)
    # The last file: where it is, the run is finished.
    rounded = {} if rounding is None else {"rounding": rounding.as_numbers()}
    write_json(run_dir / "metrics.json", {"schema": METRICS} | written | rounded)
    paths = [str(run_dir / name) for name in SHOWN if (run_dir / name).exists()]
    paths += [wandb_address(logger) for logger in loggers if isinstance(logger, WandbLogger)]
    lines = "\n".join(f"  {path}" for path in paths)
    told = "" if rounding is None else f"\n\n{rounding}"
    return f"{table(columns)}{told}\n\nwritten:\n{lines}"
