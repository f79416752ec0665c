"""One process with batches of 4 and two processes with 2 rows each walk the same path, step by step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "trajectory.py"
SHARES = "npo, with the share of each term"
CASES = (
    *("npo", SHARES, "kl", "bst", "rmu"),
    *("bss", "bss, stale beliefs only", "bss on npo, all beliefs, windows of two steps"),
)
NUM_STEPS = 9  # three epochs of 4 + 4 + 2 rows


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[int, dict[str, list[dict[str, float]]]]:
    """Logged numbers of every step, by number of processes; both runs at the same time."""
    folder, runs = tmp_path_factory.mktemp("paths"), {}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOCAL_", "MASTER_", "NODE_", "WORLD_"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    for world in (1, 2):
        command = [sys.executable, str(SCRIPT), str(folder / f"{world}.json"), str(world)]
        with open(folder / f"{world}.log", "w") as log:
            runs[world] = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        for world, run in runs.items():
            assert run.wait(timeout=150) == 0, (folder / f"{world}.log").read_text()[-3000:]
    finally:
        for run in runs.values():
            run.kill()
    return {world: json.loads((folder / f"{world}.json").read_text()) for world in runs}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_walk_the_path_of_one(paths, case):
    one, two = paths[1][case], paths[2][case]
    assert len(one) == len(two) == NUM_STEPS
    for step, (left, right) in enumerate(zip(one, two, strict=True)):
        assert left == pytest.approx(right, rel=2e-5, abs=2e-5), f"step {step}"


def test_the_paths_are_worth_comparing(paths):
    """Every case was run, no two losses are alike, and the policy moves."""
    assert set(paths[1]) == set(CASES)
    for steps in paths[1].values():
        losses = [step["train/loss"] for step in steps]
        assert len({round(loss, 3) for loss in losses}) == NUM_STEPS
        assert abs(losses[-1] - losses[0]) > 0.1


@pytest.mark.parametrize("world", [1, 2])
def test_measuring_the_shares_of_terms_changes_nothing(paths, world):
    plain, shared = paths[world]["npo"], paths[world][SHARES]
    assert [{key: value for key, value in step.items() if key.startswith("train/")} for step in shared] == plain
    for step in shared:
        parts = [step[f"gradient/{name}_norm"] * step[f"gradient/{name}_cosine"] for name in ("forget", "retain")]
        assert sum(parts) == pytest.approx(step["train/grad_norm"], rel=1e-4)
