"""Whether a point that SLURM starts again and again comes any further."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lit_unlearn.files import write_json
from lit_unlearn.sweep.plan import Sweep
from lit_unlearn.sweep.work.calls import Failed

ATTEMPTS = "attempts.json"
"""In a point's directory, what the last attempt began with, and how many before it have left nothing new."""
_MOST = 2
_KEPT, _WEIGHTS = {"checkpoints", "records", "reference"}, {".safetensors"}


def check_progress(sweep: Sweep, number: int) -> None:
    """Count this attempt. Called by who holds the point's directory, at the start: the run itself may have asked SLURM
    for it, or SLURM have seen to it.

    Raises:
        Failed: SLURM starts it once more, though two attempts in a row have left nothing new.
    """
    path, begins_with = sweep.task_dir(number) / ATTEMPTS, _kept(sweep, number)
    again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and path.is_file()
    before = json.loads(path.read_text(encoding="utf-8")) if again else {}
    in_vain = before["in_vain"] + 1 if before.get("begins_with") == begins_with else 0
    if in_vain >= _MOST:
        raise Failed(1, "preempted twice without progress; give it more time (slurm.time)")
    write_json(path, {"begins_with": begins_with, "in_vain": in_vain})


def _kept(sweep: Sweep, number: int) -> list[str]:
    """Names of the files that save a later attempt work: a later checkpoint has another one."""
    bases = (sweep.run_dir(number), sweep.shared_dir)
    found = [Path(folder, file) for base in bases for folder, _, files in os.walk(base) for file in files]
    names = [path.relative_to(sweep.directory) for path in found if _KEPT & {*path.parts} or path.suffix in _WEIGHTS]
    whole = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return sorted(map(str, whole))
