"""kill -9 of two processes that hold parts, whatever they are doing: the resumed run loses nothing, bit by bit.

``LIT_UNLEARN_KILLS``: how many for each strategy; of three one comes at any moment, one while a checkpoint is being
written and one around the sampling of beliefs.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_unlearn import finetune
from tests.integration.ranks import finish, kill_when
from tests.integration.test_kill import BSS, BY_STEPS, CONF, MODEL, what_remains

KILLS = int(os.environ.get("LIT_UNLEARN_KILLS", "1"))
COMMON = [CONF, MODEL, "finetune=null", "squeeze=null", "logging.mode=disabled", "trainer.max_epochs=4", BSS, BY_STEPS]
COMMON += ["data.benchmark.num_general=2", "evaluation.max_new_tokens=4", "evaluation.every_n_epochs=2"]
COMMON += ["trainer.devices=2", "strategy.persistent_below=0", "trainer.checkpoint_every_n_steps=1"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[str], Path, float]]:
    """Of a strategy the arguments, the run that nobody stopped and the seconds it took."""
    folder = tmp_path_factory.mktemp("straight")
    finetune.main([CONF, MODEL, f"output_dir={folder / 'models'}", "finetune.max_epochs=3", "logging.mode=disabled"])
    made: dict[str, tuple[list[str], Path, float]] = {}

    def of(strategy: str) -> tuple[list[str], Path, float]:
        if strategy not in made:
            argv = [*COMMON, f"strategy.name={strategy}", f"model.path={folder / 'models' / 'target'}"]
            run_dir = folder / strategy
            made[strategy] = argv, run_dir, finish([*argv, f"output_dir={run_dir}"], folder / f"{strategy}.txt")
        return made[strategy]

    return of


def moment(number: int, run_dir: Path, seconds: float) -> Callable[[], bool]:
    draw, began = random.Random(number), time.monotonic()
    if number % 3 == 0:
        end = began + seconds * draw.uniform(0.3, 0.95)
        return lambda: time.monotonic() > end
    if number % 3 == 1:
        step = draw.randint(2, 7)
        return lambda: any((run_dir / "checkpoints").glob(f".step-{step:08d}*"))
    row, pause = f"\n{draw.choice([1, 4])},train/loss", draw.uniform(0, 0.3)  # beliefs are sampled after steps 3 and 6

    def is_near_sampling() -> bool:
        history = run_dir / "history.csv"
        if not history.is_file() or row not in history.read_text():
            return False
        time.sleep(pause)
        return True

    return is_near_sampling


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 1 + KILLS))
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_killed_ranks_are_resumed_as_straight(strategy: str, number: int, straight, tmp_path: Path):
    argv, expected, seconds = straight(strategy)
    run_dir, output = tmp_path / "run", tmp_path / "output.txt"
    argv = [*argv, f"output_dir={run_dir}", "resume=auto"]
    assert kill_when(argv, output, moment(number, run_dir, seconds)), "it had ended before"
    finish(argv, output)
    assert what_remains(run_dir) == what_remains(expected)
    assert not [path for path in run_dir.rglob("*") if path.name.endswith((".tmp", ".lock"))]
    shutil.rmtree(run_dir)
