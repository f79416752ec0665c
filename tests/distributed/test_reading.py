"""Whoever reads a model between the steps reads all of it, on ranks that have other things to read, or is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "reading.py"


def read(folder: Path, strategy: str, gathering: str) -> dict:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOCAL_", "MASTER_", "NODE_", "WORLD_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, str(SCRIPT), str(folder / f"{strategy}.json"), strategy, gathering]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"{strategy}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "gathering"), [("zero3", "blocks"), ("fsdp2", "blocks"), ("zero3", "whole")])
def test_ranks_read_what_one_process_reads(tmp_path, strategy, gathering):
    one, found = read(tmp_path, "single", "auto"), read(tmp_path, strategy, gathering)
    assert "reading()" in found["refused"]
    assert found["said"] == one["said"]
    assert len(found["said"]) == 6
    for id, logps in one["logps"].items():
        assert found["logps"][id] == pytest.approx(logps, abs=1e-6)
