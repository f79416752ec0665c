"""What a finished run leaves behind: metrics.json, pictures, the squeezing plot on W&B, the table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from lit_unlearn.evaluation.report import table
from lit_unlearn.recording.history import log_squeeze_plot, read_history
from lit_unlearn.recording.outputs import write_json
from lit_unlearn.recording.plots import forget_retain, squeeze, trade_off

MODELS = ("original", "unlearned", "retain_model")


def write_results(run_dir: Path, numbers: Mapping[str, Mapping[str, float]], loggers: Sequence[Logger]) -> str:
    """The comparison as text; called by one rank."""
    columns = {name: numbers[name] for name in MODELS if name in numbers}
    unknown = {"forget_quality": None}  # without a retain model; the key is there all the same
    written = {name: unknown | dict(columns[name]) if name in columns else None for name in MODELS}
    history = read_history(run_dir / "history.csv")
    plots = run_dir / "plots"
    plots.mkdir(exist_ok=True)
    forget_retain(history, plots / "forget_retain.png")
    squeeze(history, plots / "squeeze.png")
    points = {name: (column["mem"], column["utility"]) for name, column in columns.items() if "mem" in column}
    utility = dict(history.get("eval/utility", []))
    way = [(mem, utility[step], step) for step, mem in history.get("eval/mem", []) if step in utility]
    trade_off(points, plots / "trade_off.png", way)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            log_squeeze_plot(logger, history)
    write_json(run_dir / "metrics.json", written)  # the last file: where it is, the run is finished
    files = "\n".join(f"  {path}" for path in sorted(run_dir.iterdir()) if not path.name.startswith("."))
    return f"{table(columns)}\n\nwritten:\n{files}"
