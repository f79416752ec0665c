"""Resumed anywhere, every later step and the model are those of the run that was not stopped, bit by bit.

Each row is a whole run with real callbacks; it goes on from a checkpoint that it has itself left.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from lit_unlearn import finetune
from lit_unlearn.recording.checkpoints import checkpoint_path, checkpoints
from lit_unlearn.recording.history import read_history
from lit_unlearn.train import main

CONF = f"conf={Path(__file__).parent / 'tiny.yaml'}"
STEPS_PER_EPOCH, EPOCHS = 2, 3
CUT = "trainer.max_steps=5"  # within the last epoch
LORA = "model.lora={rank: 4, dropout: 0.3}"
MODEL = "dropout of the model"
ANNEAL = "schedules.anneal={k: 0.5}"
DUAL = "schedules.dual_weight={step_size: 0.2}"
SELECT = "schedules.retain_selection={keep_fraction: 0.5}"
RECTIFY = "schedules.gradient_rectification={}"
RECTIFY_BSS = "schedules.gradient_rectification={forget: [forget, belief]}"
BSS = "terms.belief={weight: 0.5, objective: {name: npo, role: belief}}"
REFRESHED = [BSS, "beliefs={num_samples: 2, max_new_tokens: 6, every_n_epochs: 2}"]
BY_STEPS = [BSS, "beliefs={num_samples: 2, max_new_tokens: 6, every_n_epochs: null, every_n_steps: 3}"]
IN_BACKWARD = ["optim.name=adamw_in_backward", "trainer.gradient_clip=null"]
COSINE = ["optim.schedule=cosine", "optim.warmup_epochs=2"]
TABLE = [
    [],
    [CUT, MODEL, *COSINE],
    [CUT, LORA, *BY_STEPS],
    [LORA, *REFRESHED, *IN_BACKWARD],
    [CUT, MODEL, ANNEAL, *REFRESHED],
    [CUT, LORA, DUAL, *IN_BACKWARD],
    [CUT, SELECT, *BY_STEPS, *IN_BACKWARD],
    [CUT, LORA, RECTIFY_BSS, *REFRESHED],
    [MODEL, DUAL, RECTIFY_BSS, *BY_STEPS],
    [LORA, SELECT, ANNEAL, *BY_STEPS],
    [ANNEAL, DUAL, *REFRESHED, *IN_BACKWARD],
    [CUT, RECTIFY, SELECT, *COSINE],
    [CUT, MODEL, SELECT, *REFRESHED, *IN_BACKWARD],
]
"""Every pair of {``max_steps``, dropout, schedule, BS-S, optimizer} that goes together is in a row."""


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Whether it has dropout -> the target model."""
    models = tmp_path_factory.mktemp("start") / "models"
    options = ["finetune.max_epochs=5", "data.benchmark.num_general=2", "logging.mode=disabled"]
    finetune.main([CONF, f"output_dir={models}", *options])
    config = json.loads((models / "target" / "config.json").read_text())
    shutil.copytree(models / "target", models / "dropout")
    (models / "dropout" / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.3}))
    return {False: models / "target", True: models / "dropout"}


def weights(path: Path) -> dict[str, list[float]]:
    with safe_open(path / "model" / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name).flatten().tolist() for name in file.keys()}  # noqa: SIM118


def rows(run_dir: Path) -> list[str]:
    """The lines of the history, in the order of their writing, but for what a clock decides."""
    timed = ("train/tokens_per_second", "train/step_seconds", "train/memory_gib", "beliefs/refresh_seconds")
    lines = (run_dir / "history.csv").read_text().splitlines()
    return [line for line in lines if line.split(",")[1] not in timed]


def stop(run_dir: Path, place: str) -> None:
    """Leave of a whole run what one has left that ended with this checkpoint."""
    step = PLACES[place]
    for path in checkpoints(run_dir / "checkpoints"):
        if path != checkpoint_path(run_dir / "checkpoints", step):
            path.unlink()
    shutil.rmtree(run_dir / "model")
    (run_dir / "metrics.json").unlink()
    lines = (run_dir / "history.csv").read_text().splitlines(keepends=True)
    at = [number for number, line in enumerate(lines) if line.startswith(f"{step - 1},train/")][-1] + 1
    at += lines[at].startswith(f"{step - 1},epoch")
    (run_dir / "history.csv").write_text("".join(lines[:at]))


PLACES = {"an epoch's end": 2, "the middle of an epoch": 3, "an epoch's last step": 4}
"""Where the run was stopped, and after how many steps."""
QUICK = [(TABLE[0], "an epoch's end"), (TABLE[1], "the middle of an epoch"), (TABLE[2], "an epoch's last step")]
QUICK += [(TABLE[3], "the middle of an epoch")]
"""Always run."""
SLOW = [(row, place) for row in TABLE for place in PLACES if (row, place) not in QUICK]
SLOW = SLOW if os.environ.get("LIT_UNLEARN_MATRIX") else SLOW[::3]


def name(value: object) -> str:
    return value if isinstance(value, str) else " ".join(o.split("=")[0] for o in value) or "plain"  # type: ignore


@pytest.mark.parametrize(
    ("options", "place"), QUICK + [pytest.param(*c, marks=pytest.mark.slow) for c in SLOW], ids=name
)
def test_resumed_is_straight(starts, options: list[str], place: str, tmp_path: Path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    fixed = [CONF, f"model.path={starts[MODEL in options]}", "finetune=null", "data.benchmark.num_general=2"]
    fixed += [f"trainer.max_epochs={EPOCHS}", "evaluation.every_n_epochs=0", "evaluation.max_new_tokens=4"]
    fixed += ["logging.mode=disabled", "squeeze=null", *(option for option in options if option != MODEL)]
    kept = ["trainer.keep_checkpoints=9", "trainer.checkpoint_every_n_steps=1"]
    kept += ["trainer.checkpoint_every_n_epochs=0"] if place == "an epoch's last step" else []
    main([*fixed, *kept, f"output_dir={straight}"])
    last = 5 if CUT in options else STEPS_PER_EPOCH * EPOCHS
    losses = read_history(straight / "history.csv")["train/loss"]
    assert [step for step, _ in losses] == list(range(last))

    shutil.copytree(straight, resumed)
    stop(resumed, place)
    before = rows(resumed)
    assert rows(straight)[: len(before)] == before
    main([*fixed, f"output_dir={resumed}", "resume=true"])

    assert rows(resumed) == rows(straight)
    assert weights(resumed) == weights(straight)
    assert (resumed / "metrics.json").read_bytes() == (straight / "metrics.json").read_bytes()
