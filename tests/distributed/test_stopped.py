"""Stopped in the middle of an epoch, every strategy walks on as if nobody had stopped it, some on other ranks too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.stopped import STEP

SCRIPT = Path(__file__).parent / "stopped.py"
STRATEGIES = ["ddp", "zero2", "zero3", "fsdp2"]
ADAPTERS, SAMPLING = "npo, adapters", "bss on npo, all beliefs, windows of two steps"
MOVES = [("ddp", 2, "single", 1), ("single", 1, "ddp", 2), ("fsdp2", 2, "fsdp2", 1), ("fsdp2", 1, "fsdp2", 2)]
NUM_STEPS = 9


def run(root: Path, world: int, *fits: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOCAL_", "MASTER_", "NODE_", "WORLD_"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SCRIPT), str(root), str(world), *fits]
    done = subprocess.run(
        command, env=environment | {"DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All fits, in as few processes as go."""
    root = tmp_path_factory.mktemp("stopped")
    run(root, 1, *(f"moved {name} 1:{name}:{SAMPLING}" for name in ("single", "fsdp2")))
    straight = [f"{name} {case}:{name}:{case}" for name in STRATEGIES for case in (ADAPTERS, SAMPLING)]
    resumed = [f"resumed {text}:{text.partition(':')[0]}" for text in straight]
    there = [f"{a} {m} to {b} {n}:{b}:{SAMPLING}:moved {a} 1" for a, m, b, n in MOVES if m == 1]
    run(root, 2, *straight, *resumed, *there)
    back = [f"{a} {m} to {b} {n}:{b}:{SAMPLING}:{a} {SAMPLING}" for a, m, b, n in MOVES if m == 2]
    run(root, 1, *back)
    return root


def walked(root: Path, name: str, case: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    steps = json.loads((root / name / "steps.json").read_text())
    return steps, load_file(root / name / "weights" / f"{case}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("case", [ADAPTERS, SAMPLING])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stopped_within_an_epoch_is_straight(root: Path, strategy: str, case: str):
    steps, weights = walked(root, f"{strategy} {case}", case)
    later, same = walked(root, f"resumed {strategy} {case}", case)
    assert len(steps) == NUM_STEPS
    assert later == steps[STEP:]
    assert all(torch.equal(weights[name], same[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "ranks", "after", "others"), MOVES)
def test_on_other_ranks_the_losses_agree_to_rounding(root: Path, before: str, ranks: int, after: str, others: int):
    name = f"moved {before} 1" if ranks == 1 else f"{before} {SAMPLING}"
    steps, weights = walked(root, name, SAMPLING)
    later, same = walked(root, f"{before} {ranks} to {after} {others}", SAMPLING)
    assert len(later) == NUM_STEPS - STEP
    for one, other in zip(steps[STEP:], later, strict=True):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-5)
    assert max((weights[name] - same[name]).abs().max().item() for name in weights) < 2e-5
