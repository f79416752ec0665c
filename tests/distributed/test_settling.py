"""``data.micro_batch_size=auto`` under a limit of memory that the allocator itself meets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "settling.py"
ROWS = 32
CASES = [("single", 0), ("single", 80), ("ddp", 80)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux alone")
@pytest.mark.parametrize(("strategy", "allowed"), CASES)
def test_the_settled_run_is_that_of_the_number_given(strategy, allowed, tmp_path):
    world = 1 if strategy == "single" else 2
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out.json"), str(world), strategy, str(allowed)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["equal"]
    assert len(set(found["sizes"])) == 1
    assert found["sizes"][0] < ROWS if allowed else found["sizes"] == [ROWS]
