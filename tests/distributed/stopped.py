"""Fits cases straight and from checkpoints that other fits have left.

`stopped.py DIR NUM_PROCESSES FIT ...`; a fit is NAME:STRATEGY:CASE or NAME:STRATEGY:CASE:FROM, where FROM is the name
of a straight fit, whose checkpoint after ``STEP`` steps it goes on from. NAME/steps.json and NAME/weights come of it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import torch

from lit_unlearn.recording.checkpoints import checkpoint_path
from tests.distributed.trajectory import fit

STEP = 5
"""Of 3 + 3 + 3: in the middle of the second epoch."""
DROPOUT = 0.3


def prepare(directory: Path, start: Path | None) -> None:
    """By the first process, before any other is there: what a stopped run has left."""
    if start is None or directory.exists():
        return
    (directory / "checkpoints").mkdir(parents=True)
    found = checkpoint_path(start / "run" / "checkpoints", STEP)
    copy = shutil.copytree if found.is_dir() else shutil.copy
    copy(found, directory / "checkpoints" / found.name)
    for path in (start / "run").iterdir():  # scores of the reference, as far as there are any
        if path.is_dir() and path.name != "checkpoints":
            shutil.copytree(path, directory / path.name)


def carry_out(root: Path, world: int, name: str, strategy: str, case: str, start: str = "") -> None:
    directory = root / name / "run"
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if first:
        prepare(directory, root / start if start else None)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    steps = fit(case, world, strategy, None, directory, DROPOUT, every_n_steps=1)
    if first:
        (root / name / "steps.json").write_text(json.dumps(steps))


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for text in sys.argv[3:]:
        carry_out(Path(sys.argv[1]), int(sys.argv[2]), *text.split(":"))
