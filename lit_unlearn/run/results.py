"""What a finished run leaves behind: metrics.json, the squeezing plots on W&B, the table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from lit_unlearn.callbacks.evaluation import Evaluation
from lit_unlearn.evaluation.report import table
from lit_unlearn.files import write_json
from lit_unlearn.recording.history import read_history
from lit_unlearn.recording.wandb.page import log_squeeze_plots
from lit_unlearn.recording.wandb.run import wandb_address
from lit_unlearn.schemas import METRICS

MODELS = ("original", "unlearned", "retain_model")
SHOWN = ("metrics.json", "history.csv", "plots", "records", "model")
"""What a person opens next; the rest of the run directory stands beside it."""


def write_results(run_dir: Path, evaluation: Evaluation, loggers: Sequence[Logger]) -> str:
    """The comparison as text; called by one rank."""
    choice, rounding = evaluation.choice, evaluation.rounding
    written = by_model(evaluation.numbers, MODELS)
    if evaluation.selection:
        written["selection"] = by_model(evaluation.selection, MODELS)
    if choice is not None:
        written["chosen"] = choice.as_numbers()
    if rounding is not None:
        written["rounding"] = rounding.as_numbers()
    history = read_history(run_dir / "history.csv")
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            log_squeeze_plots(logger, history)
    # The last file: where it is, the run is finished.
    write_json(run_dir / "metrics.json", {"schema": METRICS} | written)
    paths = [str(run_dir / name) for name in SHOWN if (run_dir / name).exists()]
    paths += [wandb_address(logger) for logger in loggers if isinstance(logger, WandbLogger)]
    lines = "\n".join(f"  {path}" for path in paths)
    told = "".join(f"\n\n{part}" for part in (choice, rounding) if part is not None)
    columns = {name: evaluation.numbers[name] for name in MODELS if name in evaluation.numbers}
    return f"{table(columns)}{told}\n\nwritten:\n{lines}"


def by_model(numbers: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> dict[str, object]:
    """As ``metrics.json`` has them: None for a model, or a forget quality, that is not known."""
    unknown = {"forget_quality": None}  # without a retain model; the key is there all the same
    return {name: unknown | dict(numbers[name]) if name in numbers else None for name in names}
