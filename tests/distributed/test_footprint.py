"""The memory plan's arithmetic is what the operating system counts, whatever the strategy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_unlearn.data.sampler import StepSampler
from lit_unlearn.memory.step import step_parts
from lit_unlearn.memory.tokens import count_tokens
from lit_unlearn.speed.plan.named import model_size
from lit_unlearn.speed.workload.rows import step_rows
from lit_unlearn.types import Role
from tests.distributed.footprint import LOGITS_MIB, MEASURED, NUM_STEPS

SCRIPT = Path(__file__).parent / "footprint.py"
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""The C library gives back at once what is freed."""
CASES = [("fsdp2", 2, "none")]
if os.environ.get("LIT_UNLEARN_MATRIX"):  # half a minute each on two idle cores
    CASES += [(name, rows, "none") for name in ("single", "ddp", "zero2", "zero3", "fsdp2") for rows in (2, 8)]
    CASES += [("zero1", 2, "none"), ("single", 8, "full")]


def planned(strategy: str, world: int, num_rows: int, checkpointing: str) -> float:
    """Largest of the measured steps on the first rank, in bytes; a CPU has no workspace."""
    size = model_size("llama43m")
    rows = step_rows("tofu", num_rows * world * NUM_STEPS, size.vocab, 0)
    roles = (Role.forget, Role.retain)
    sampler = StepSampler({role: len(rows[role]) for role in roles}, roles[0], num_rows * world, 0, 0, world)
    totals = []
    for step in list(sampler)[MEASURED:]:
        tokens = count_tokens({role: [rows[role][index] for index in ids] for role, ids in step.items()})
        parts = step_parts(
            size,
            "adamw",
            tokens,
            strategy=strategy,
            num_gpus=world,
            autocast=False,
            checkpointing=checkpointing == "full",
            logits_mib=LOGITS_MIB,
        )
        totals.append(parts.total - parts.workspace)
    return max(totals) * 2**30


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize(("strategy", "num_rows", "checkpointing"), CASES)
def test_a_rank_takes_what_the_plan_says(strategy, num_rows, checkpointing, tmp_path):
    world = 1 if strategy == "single" else 2
    environment = os.environ | EXACT | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out.json"), str(world), strategy, str(num_rows)]
    run = subprocess.run([*command, checkpointing], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    peaks = json.loads((tmp_path / "out.json").read_text())
    assert len(peaks) == world
    assert peaks == pytest.approx([planned(strategy, world, num_rows, checkpointing)] * world, rel=0.15)
