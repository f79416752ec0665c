"""Real offline W&B runs read back: where they stand, what their summary keeps, pictures and tables, and no key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import pytest
import wandb
from matplotlib import image

from lit_unlearn.recording.settings import LoggingConfig
from lit_unlearn.recording.wandb.page import log_answers, log_pictures, log_squeeze_plots
from lit_unlearn.recording.wandb.run import Direction, Identity, close_wandb, wandb_logger
from tests.wandb_reader import read_runs

KEY = "0123456789abcdef0123456789abcdef01234567"
SQUEEZE = {
    "squeeze/target": [(0, -0.5), (10, -math.inf), (20, -6.0)],
    "squeeze/high": [(0, -1.0), (20, -0.25)],
    "squeeze/entropy": [(0, 1.0)],
    "squeeze/index": [(0, 0.0), (20, 0.75)],
    "squeeze/retain_index": [(0, 0.0), (20, 0.125)],
}
BEST: dict[str, Direction] = {"eval/agg": "max", "eval_forget/probability": "min"}


@pytest.fixture(autouse=True)
def _closed_run():
    yield
    wandb.finish()


def open_wandb(run_dir: Path, mode: Literal["auto", "offline", "disabled"] = "auto", name="toy", job="unlearn"):
    config = {"optim": {"lr": 0.5}, "wandb": {"api_key": KEY}, "note": f"key {KEY}"}
    return wandb_logger(run_dir, Identity("unlearning", "study", name, job, ("npo", "tiny")), mode, config, BEST)


def opened(run_dir: Path, **options):
    logger = open_wandb(run_dir, **options)
    assert logger is not None
    return logger


def test_an_offline_run_says_what_it_is_and_holds_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OTHER_SECRET", KEY)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("sys.argv", ["train", f"wandb.api_key={KEY}"])
    logger = opened(tmp_path, mode="offline")
    logger.log_metrics({"train/loss": 1.5}, step=3)
    close_wandb([logger])
    (run,) = read_runs(tmp_path)
    assert (run.project, run.group, run.name, run.job_type, run.tags) == (
        "unlearning", "study", "toy", "unlearn", ["npo", "tiny"]
    )  # fmt: skip
    assert run.config["optim"] == {"lr": 0.5}
    assert [(row["trainer/global_step"], row["train/loss"]) for row in run.history] == [(3, 1.5)]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 4
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_the_summary_keeps_the_best_and_the_last_value(tmp_path):
    logger = opened(tmp_path)
    for step, (agg, probability, loss) in enumerate([(0.1, 0.9, 3.0), (0.6, 0.2, 1.0), (0.5, 0.4, 2.0)]):
        logger.log_metrics({"eval/agg": agg, "eval_forget/probability": probability, "train/loss": loss}, step=step)
    close_wandb([logger])
    (run,) = read_runs(tmp_path)
    assert run.summary["eval/agg"] == {"max": 0.6, "last": 0.5}
    assert run.summary["eval_forget/probability"] == {"min": 0.2, "last": 0.4}
    assert run.summary["train/loss"] == 2.0
    assert {axis for key, (axis, _) in run.metrics.items() if key != "trainer/global_step"} == {"trainer/global_step"}


def test_one_run_after_the_other_in_one_process_and_resumed_by_its_own_id(tmp_path):
    """As a finetuning before the unlearning; both are opened again as after an interruption."""
    folders, ids = (tmp_path / "finetuning", tmp_path), []
    for _ in range(2):
        for folder, job in zip(folders, ("finetune_target", "unlearn"), strict=True):
            logger = opened(folder, name=job, job=job)
            logger.log_metrics({"train/loss": float(len(ids))}, step=0)
            ids.append(logger.experiment.id)
            close_wandb([logger])
            assert wandb.run is None
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]
    for number, folder in enumerate(folders):
        runs = read_runs(folder)
        assert {(run.id, run.name, run.group) for run in runs} == {(ids[number], run.job_type, "study") for run in runs}
        assert [row["train/loss"] for run in runs for row in run.history] == [number, number + 2]


def test_pictures_and_answers_are_files_of_the_run(tmp_path):
    image.imsave(tmp_path / "squeeze.png", [[0.0, 1.0]])
    logger = opened(tmp_path)
    log_pictures(logger, [tmp_path / "squeeze.png"], step=5)
    log_answers(logger, ("question", "answer"), [("who?", "Ada"), ("where?", "here")], step=5)
    close_wandb([logger])
    (run,) = read_runs(tmp_path)
    (pictures,) = [row for row in run.history if "plots/squeeze/path" in row]
    (answers,) = [row for row in run.history if "answers/forget/path" in row]
    assert pictures["trainer/global_step"] == answers["trainer/global_step"] == 5
    (files,) = tmp_path.glob("wandb/offline-run-*/files")
    assert (files / pictures["plots/squeeze/path"]).read_bytes() == (tmp_path / "squeeze.png").read_bytes()
    assert json.loads((files / answers["answers/forget/path"]).read_text()) == {
        "columns": ["question", "answer"],
        "data": [["who?", "Ada"], ["where?", "here"]],
    }
    assert run.files >= {pictures["plots/squeeze/path"], answers["answers/forget/path"]}


def test_the_squeeze_plots(tmp_path):
    logger = opened(tmp_path)
    log_squeeze_plots(logger, SQUEEZE)
    close_wandb([logger])
    (run,) = read_runs(tmp_path)
    (plot,) = [row for row in run.history if "squeeze/curves_table/path" in row]
    assert plot["trainer/global_step"] == 20
    (files,) = tmp_path.glob("wandb/offline-run-*/files")
    assert json.loads((files / plot["squeeze/curves_table/path"]).read_text()) == {
        "columns": ["step", "lineKey", "lineVal"],
        "data": [
            [0, "target answer", -0.5],
            [20, "target answer", -6.0],
            [0, "likely responses", -1.0],
            [20, "likely responses", -0.25],
        ],
    }
    (index_table,) = files.glob("media/table/squeeze/indices_table_*.json")
    assert json.loads(index_table.read_text())["data"] == [
        [0, "forget prompts", 0.0],
        [20, "forget prompts", 0.75],
        [0, "retain prompts (control)", 0.0],
        [20, "retain prompts (control)", 0.125],
    ]
    assert run.config["_wandb/visualize/squeeze/curves"]["panel_config"]["panelDefId"] == "wandb/lineseries/v0"


def test_auto_without_a_key_is_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert opened(tmp_path).experiment.offline


def test_disabled_writes_nothing(tmp_path):
    assert open_wandb(tmp_path, "disabled") is None
    assert not list(tmp_path.iterdir())


def test_what_wandb_would_refuse_is_said_before():
    with pytest.raises(ValueError, match=r"logging\.tags: 'x+' has 65 characters; W&B takes 1 to 64"):
        LoggingConfig(tags=["x" * 65])
    with pytest.raises(ValueError, match="gradient_shares_every_n_steps=-1"):
        LoggingConfig(gradient_shares_every_n_steps=-1)
