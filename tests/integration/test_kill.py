"""kill -9 at any moment, and at the worst, the middle of a checkpoint's write: the resumed run loses nothing.

Twenty deaths over five kinds of run (``LIT_UNLEARN_KILLS=10``; else eight). Each is resumed as anybody would, and must
end with the weights, the numbers, the records and the steps of a run that nobody stopped, bit by bit.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from lit_unlearn import finetune
from lit_unlearn.recording.history import read_history
from tests.integration.killing import finish, kill_after, kill_while_writing

CONF = f"conf={Path(__file__).parent / 'tiny.yaml'}"
MODEL = "model.tiny={vocab_size: 400, hidden_size: 192, num_layers: 3, num_heads: 2}"
LORA = "model.lora={rank: 4, dropout: 0.2}"
CUT = "trainer.max_steps=7"  # in the middle of the fourth epoch
BSS = "terms.belief={weight: 0.5, objective: {name: npo, role: belief}}"
BELIEFS = "beliefs={num_samples: 2, max_new_tokens: 6, every_n_epochs: 2}"
BY_STEPS = "beliefs={num_samples: 2, max_new_tokens: 6, every_n_epochs: null, every_n_steps: 3}"
KINDS = {
    "with finetuning": ["finetune={max_epochs: 6, batch_size: 8, optim: {lr: 5.0e-3}}"],
    "lora dropout": [LORA],
    "max_steps": [CUT, "schedules.dual_weight={step_size: 0.2}"],
    "bss": [BSS, BELIEFS],
    "all": [CUT, LORA, BSS, BY_STEPS, "schedules.anneal={k: 0.5}"],
}
CASES = [(number, list(KINDS)[number % 5]) for number in range(20)]
CASES = CASES if int(os.environ.get("LIT_UNLEARN_KILLS", 1)) > 1 else CASES[:5] + CASES[15:18]
WHILE_WRITING = range(15, 20)
TIMED = ("train/tokens_per_second", "train/step_seconds", "train/memory_gib", "beliefs/refresh_seconds")


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Path]:
    """A folder on another file system than ``$TMPDIR``."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or os.stat(shared).st_dev == os.stat(tempfile.gettempdir()).st_dev:
        pytest.skip("no second file system is mounted at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    models = tmp_path_factory.mktemp("start") / "models"
    finetune.main([CONF, MODEL, f"output_dir={models}", "finetune.max_epochs=6", "logging.mode=disabled"])

    def of(kind: str) -> list[str]:
        start = [] if kind == "with finetuning" else [f"model.path={models / 'target'}", "finetune=null"]
        small = ["data.benchmark.num_general=2", "evaluation.max_new_tokens=4", "evaluation.every_n_epochs=2"]
        small += ["squeeze.max_new_tokens=4", "logging.mode=disabled", "trainer.max_epochs=4"]
        return [CONF, MODEL, *small, *start, *KINDS[kind]]

    return of


@pytest.fixture(scope="module")
def straight(arguments, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, float]]:
    """The run that nobody stopped and the seconds it took; each kind is run once."""
    made: dict[str, tuple[Path, float]] = {}

    def of(kind: str) -> tuple[Path, float]:
        if kind not in made:
            folder = tmp_path_factory.mktemp("straight")
            argv = [*arguments(kind), f"output_dir={folder / 'run'}"]
            made[kind] = folder / "run", finish(argv, folder / "output.txt")
        return made[kind]

    return of


def what_remains(run_dir: Path) -> Mapping[str, object]:
    """All that a run is for: its model, numbers, records and curves."""
    files = [
        run_dir / "metrics.json",
        run_dir / "model" / "model.safetensors",
        *(run_dir / "records").glob("*/*.jsonl"),
    ]
    history = {name: points for name, points in read_history(run_dir / "history.csv").items() if name not in TIMED}
    assert len(files) > 6
    assert history["train/loss"]
    return {**{str(path.relative_to(run_dir)): hash(path.read_bytes()) for path in files}, **history}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kind"), CASES)
def test_killed_and_resumed_is_straight(number: int, kind: str, arguments, straight, tmp_path: Path, elsewhere: Path):
    expected, seconds = straight(kind)
    draw, output = random.Random(number), tmp_path / "output.txt"
    for attempt in range(6):  # a kill that comes too late, on a machine less busy than before, has shown nothing
        run_dir = (elsewhere if number in WHILE_WRITING else tmp_path) / f"{number}-{attempt}"
        argv = [*arguments(kind), f"output_dir={run_dir}"]
        if number in WHILE_WRITING:
            killed = kill_while_writing(argv, output, run_dir / "checkpoints", draw.randint(1, 3))
        else:
            killed = kill_after(argv, output, seconds * draw.uniform(0.05, 0.95) * 0.7**attempt)
        if killed:
            break
    else:
        pytest.fail("no kill came in time")
    if number % 3 == 0 and (run_dir / "config.yaml").is_file():  # and once more, on its way again
        kill_after([*argv, "resume=true"], output, seconds * draw.uniform(0.1, 0.6))
    finish([*argv, "resume=true"] if (run_dir / "config.yaml").is_file() else argv, output)
    assert what_remains(run_dir) == what_remains(expected)
    assert not [path for path in run_dir.rglob("*") if path.name.endswith((".tmp", ".lock"))]
    shutil.rmtree(run_dir)
