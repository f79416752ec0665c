"""One process with batches of 4 walks the path of two processes that share them, step by step, whatever they cut."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "trajectory.py"
SHARES = "npo, with the share of each term"
SAMPLING = "bss on npo, all beliefs, windows of two steps"
CASES = (
    *("npo", "npo, tied", SHARES, "kl", "kl, a resident reference", "npo, adapters", "bst", "rmu"),
    *("bss", "bss, stale beliefs only", SAMPLING),
)
CUT = tuple(case for case in CASES if case not in (SHARES, "bss, stale beliefs only"))
"""SHARES compares whole gradients, which a strategy that cuts them refuses."""
NUM_STEPS = 9  # three epochs of 4 + 4 + 3 rows
ALL = os.environ.get("LIT_UNLEARN_MATRIX")
STRATEGIES = ["zero2+optimizer", "zero3+blocks", "fsdp2"]
MORE = ["ddp", "zero1", "zero2", "zero3", "zero3+optimizer", "zero3+parameters", "fsdp2+blocks"]
STRATEGIES += MORE if ALL else []
SIZES = [0, 1] if ALL else [1]


@dataclass(frozen=True)
class Path_:
    steps: dict[str, list[dict[str, float]]]
    weights: dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Runs the script, once for each set of arguments."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOCAL_", "MASTER_", "NODE_", "WORLD_"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"DS_ACCELERATOR": "cpu"}

    @cache
    def start(world: int, strategy: str, micro: int, cases: tuple[str, ...]) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp("path")
        command = [sys.executable, str(SCRIPT), str(folder / "out.json"), str(world), strategy, str(micro), *cases]
        with open(folder / "log", "w") as log:
            run = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        return folder, run

    @cache
    def finish(world: int, strategy: str = "auto", micro: int = 0, cases: tuple[str, ...] = CASES) -> Path_:
        folder, run = start(world, strategy, micro, cases)
        try:
            assert run.wait(timeout=200) == 0, (folder / "log").read_text()[-3000:]
        finally:
            run.kill()
        steps = json.loads((folder / "out.json").read_text())
        return Path_(steps, {case: load_file(folder / "weights" / f"{case}.safetensors") for case in steps})

    for world in (1, 2):
        start(world, "auto", 0, CASES)  # at the same time
    return finish


def compare(one: Path_, other: Path_, case: str) -> None:
    assert len(one.steps[case]) == len(other.steps[case]) == NUM_STEPS
    for step, (left, right) in enumerate(zip(one.steps[case], other.steps[case], strict=True)):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-5), f"step {step}"
    assert one.weights[case].keys() == other.weights[case].keys()
    for name, weight in one.weights[case].items():
        assert (weight - other.weights[case][name]).abs().max() < 2e-5, name


@pytest.mark.parametrize("case", CASES)
def test_two_processes_walk_the_path_of_one(walk, case):
    compare(walk(1), walk(2), case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CUT)
@pytest.mark.parametrize("micro", SIZES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_walks_the_path_of_one(walk, strategy, micro, case):
    compare(walk(1), walk(2, strategy, micro, CUT), case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CUT)
def test_micro_batches_make_the_gradient_of_the_whole_batch(walk, case):
    compare(walk(1), walk(1, "auto", 1, CUT), case)


def test_the_paths_are_worth_comparing(walk):
    """Every case was run, no two losses are alike, and the policy moves."""
    steps = walk(1).steps
    assert set(steps) == set(CASES)
    for path in steps.values():
        losses = [step["train/loss"] for step in path]
        assert len({round(loss, 3) for loss in losses}) == NUM_STEPS
        assert abs(losses[-1] - losses[0]) > 0.1
    assert any(step["train/grad_norm"] > 1 for path in steps.values() for step in path)  # clipped


@pytest.mark.parametrize("world", [1, 2])
def test_measuring_the_shares_of_terms_changes_nothing(walk, world):
    plain, shared = walk(world).steps["npo"], walk(world).steps[SHARES]
    assert [{key: value for key, value in step.items() if key.startswith("train/")} for step in shared] == plain
    for step in shared:
        parts = [step[f"gradient/{name}_norm"] * step[f"gradient/{name}_cosine"] for name in ("forget", "retain")]
        assert sum(parts) == pytest.approx(step["train/grad_norm"], rel=1e-4)
