"""Resumed at an epoch's end, every later step and the model are those of the run that was not stopped, bit by bit.

Each row is a whole run with real callbacks; it goes on from a checkpoint that it has itself left.
"""

from __future__ import annotations

import json
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


def curves(run_dir: Path, first: int) -> dict[str, list[tuple[int, float]]]:
    timed = ("train/tokens_per_second", "train/step_seconds", "train/memory_gib", "beliefs/refresh_seconds")
    history = read_history(run_dir / "history.csv")
    later = {name: [point for point in history[name] if point[0] >= first] for name in history if name not in timed}
    at_epoch_ends = ("eval", "selection/")  # before the checkpoint: the stopped run's history has them already
    return {name: points for name, points in later.items() if points and not name.startswith(at_epoch_ends)}


QUICK = TABLE[:4]
"""Rows that are always run."""
MARKED = QUICK + [pytest.param(row, marks=pytest.mark.slow) for row in TABLE[len(QUICK) :]]


@pytest.mark.parametrize("options", MARKED, ids=lambda options: " ".join(o.split("=")[0] for o in options) or "plain")
def test_resumed_is_straight(starts, options: list[str], tmp_path: Path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    fixed = [CONF, f"model.path={starts[MODEL in options]}", "finetune=null", "data.benchmark.num_general=2"]
    fixed += [f"trainer.max_epochs={EPOCHS}", "evaluation.every_n_epochs=0", "evaluation.max_new_tokens=4"]
    fixed += ["logging.mode=disabled", "squeeze=null", *(option for option in options if option != MODEL)]
    main([*fixed, f"output_dir={straight}", "trainer.keep_checkpoints=9"])
    expected = curves(straight, STEPS_PER_EPOCH)
    last = 5 if CUT in options else STEPS_PER_EPOCH * EPOCHS
    assert [step for step, _ in expected["train/loss"]] == list(range(STEPS_PER_EPOCH, last))

    shutil.copytree(straight, resumed)
    for path in checkpoints(resumed / "checkpoints"):
        if path != checkpoint_path(resumed / "checkpoints", STEPS_PER_EPOCH):
            path.unlink()
    shutil.rmtree(resumed / "model")
    (resumed / "history.csv").unlink()
    (resumed / "metrics.json").unlink()
    main([*fixed, f"output_dir={resumed}", "resume=true"])

    assert curves(resumed, 0) == expected
    assert weights(resumed) == weights(straight)
    assert (resumed / "metrics.json").read_bytes() == (straight / "metrics.json").read_bytes()
