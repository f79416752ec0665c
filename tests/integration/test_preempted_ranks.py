"""Two processes that a scheduler asks to end do so together, in order, and go on as if nobody had asked."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_unlearn.recording.checkpoints import checkpoints
from tests.integration.ranks import finish, start
from tests.wandb_reader import read_run

CONF = f"conf={Path(__file__).parent / 'tiny.yaml'}"
COMMON = [CONF, "squeeze=null", "logging.mode=offline", "evaluation.every_n_epochs=0", "evaluation.max_new_tokens=4"]
COMMON += ["finetune.max_epochs=4", "trainer.max_epochs=90", "trainer.checkpoint_every_n_epochs=0"]
COMMON += ["data.benchmark.num_general=2", "trainer.devices=2", "strategy.persistent_below=0", "resume=auto"]


def ask_to_end(argv: list[str], output: Path, is_time: Callable[[], bool], everybody: bool) -> str:
    """What the run says last."""
    process = start(argv, output)
    while not is_time():
        assert process.poll() is None, output.read_text()[-4000:]
        time.sleep(0.02)
    if everybody:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(process.pid, signal.SIGUSR1)
    assert process.wait(timeout=60) == 75, output.read_text()[-4000:]
    assert "Traceback" not in output.read_text()
    return output.read_text().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_ranks_end_together_and_go_on(strategy: str, tmp_path: Path):
    run_dir, output = tmp_path / "run", tmp_path / "output.txt"
    argv = [*COMMON, f"strategy.name={strategy}", f"output_dir={run_dir}"]
    finetuned, trained = run_dir / "finetune" / "target_run" / "history.csv", run_dir / "history.csv"

    def has_steps(path: Path) -> bool:
        return path.is_file() and path.read_text().count("train/loss") > 1

    told = ask_to_end(argv, output, lambda: has_steps(finetuned), everybody=True)
    assert told.endswith("go on with resume=auto")
    told = ask_to_end(argv, output, lambda: has_steps(trained), everybody=False)
    (saved,) = checkpoints(run_dir / "checkpoints")
    assert told == f"preempted: {saved} is whole; go on with resume=auto"
    finish(argv, output)
    finish(argv, output)  # nothing is left to do
    for path, number in ((finetuned, 4 * 4), (trained, 180)):
        steps = Counter(line.split(",")[0] for line in path.read_text().splitlines() if ",train/loss," in line)
        assert steps == Counter(map(str, range(number))), path
    told_online = [row for path in (run_dir / "wandb").glob("offline-run-*/*.wandb") for row in read_run(path).history]
    steps = Counter(row["trainer/global_step"] for row in told_online if "train/loss" in row)
    assert steps == Counter(range(180))
    assert not list(run_dir.rglob("*.tmp"))
    assert not (run_dir / "finetune" / "target_run" / "checkpoints").exists()
