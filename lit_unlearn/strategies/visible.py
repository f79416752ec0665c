"""How many processes a machine is to run, and on which GPUs, known without torch."""

from __future__ import annotations

import os
from pathlib import Path


def visible_gpus() -> list[str]:
    """As the environment names them, else the files of their driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip() not in ("", "-1")]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def processes_here(accelerator: str) -> int:
    """What torchrun or srun has started, else one a GPU; one where there are none."""
    started = os.environ.get("LOCAL_WORLD_SIZE")
    if started is None and "SLURM_STEP_ID" in os.environ:
        started = os.environ.get("SLURM_NTASKS_PER_NODE")
    if started is not None and started.isdecimal():
        return int(started)
    return 1 if accelerator == "cpu" else len(visible_gpus()) or 1
