"""The history CSV under a real trainer, cut and resumed; a real offline W&B run read back; no key in any file."""

from __future__ import annotations

import json
import math
from typing import Literal

import lightning as L
import pytest
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities import rank_zero_only

from lit_unlearn.recording.history import History, log_squeeze_plot, read_history, wandb_logger
from tests.wandb_reader import read_run

KEY = "0123456789abcdef0123456789abcdef01234567"
SQUEEZE = {
    "squeeze/target": [(0, -0.5), (10, -math.inf), (20, -6.0)],
    "squeeze/high": [(0, -1.0), (20, -0.25)],
    "squeeze/entropy": [(0, 1.0)],
}


class Noting(BoringModel):
    def training_step(self, batch, batch_idx):
        loss = self.step(batch)
        self.log("train/loss", loss)
        return loss


def fit(run_dir, max_steps, loggers, **options):
    L.seed_everything(0)
    trainer = L.Trainer(
        max_steps=max_steps,
        limit_val_batches=0,
        logger=loggers,
        log_every_n_steps=1,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(run_dir / "checkpoints", save_last=True, every_n_train_steps=2)],
    )
    trainer.fit(Noting(), **options)


def test_a_trainer_writes_every_step(tmp_path):
    fit(tmp_path, 4, [History(tmp_path)])
    history = read_history(tmp_path / "history.csv")
    assert [step for step, _ in history["train/loss"]] == [0, 1, 2, 3]
    assert history.keys() == {"train/loss", "epoch"}
    assert (tmp_path / "history.csv").read_text().startswith("step,metric,value\n0,train/loss,")


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path):
    fit(tmp_path, 4, [History(tmp_path)])
    before = (tmp_path / "history.csv").read_text()
    torn = before + "4,train/loss,0.123\n5,train/lo"  # step 4 came after the checkpoint, step 5 was being written
    (tmp_path / "history.csv").write_text(torn)
    fit(tmp_path, 7, [History(tmp_path)], ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert (tmp_path / "history.csv").read_text().startswith(before)
    losses = read_history(tmp_path / "history.csv")["train/loss"]
    assert [step for step, _ in losses] == [0, 1, 2, 3, 4, 5, 6]
    assert losses[4][1] != 0.123


def test_values_come_back_exactly_and_the_last_of_a_step_counts(tmp_path):
    history = History(tmp_path)
    values = {"a,b": 0.1 + 0.2, "c": math.nan, "d": -math.inf, "e": 1e-320}
    history.log_metrics(values, step=7)
    history.log_metrics({"e": 2.0}, step=3)
    history.log_metrics({"e": 3.0}, step=3)
    read = read_history(tmp_path / "history.csv")
    assert math.isnan(read.pop("c")[0][1])
    assert read == {"a,b": [(7, 0.1 + 0.2)], "d": [(7, -math.inf)], "e": [(3, 3.0), (7, 1e-320)]}


def test_a_number_cut_short_is_not_read(tmp_path):
    (tmp_path / "history.csv").write_text("step,metric,value\n0,a,1.5\n1,a,1.")
    assert read_history(tmp_path / "history.csv") == {"a": [(0, 1.5)]}


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    History(tmp_path).log_metrics({"a": 1.0}, step=0)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def _closed_run():
    yield
    wandb.finish()


def open_wandb(run_dir, mode: Literal["auto", "offline", "disabled"] = "auto"):
    config = {"optim": {"lr": 0.5}, "wandb": {"api_key": KEY}, "note": f"key {KEY}"}
    return wandb_logger(run_dir, project="unlearning", name="toy", mode=mode, config=config)


@pytest.mark.usefixtures("_closed_run")
def test_an_offline_run_holds_the_metrics_the_config_and_the_squeeze_plot(tmp_path, monkeypatch):
    monkeypatch.setenv("OTHER_SECRET", KEY)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("sys.argv", ["train", f"wandb.api_key={KEY}"])
    logger = open_wandb(tmp_path, "offline")
    assert logger is not None
    fit(tmp_path, 3, [History(tmp_path), logger])
    log_squeeze_plot(logger, SQUEEZE)
    wandb.finish()

    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    run = read_run(file)
    assert (run.name, run.project) == ("toy", "unlearning")
    assert run.config["optim"] == {"lr": 0.5}
    losses = [(row["trainer/global_step"], row["train/loss"]) for row in run.history if "train/loss" in row]
    assert losses == read_history(tmp_path / "history.csv")["train/loss"]
    (plot,) = [row for row in run.history if "squeeze/curves_table/path" in row]
    assert plot["trainer/global_step"] == 20
    assert json.loads((file.parent / "files" / plot["squeeze/curves_table/path"]).read_text()) == {
        "columns": ["step", "lineKey", "lineVal"],
        "data": [
            [0, "target answer", -0.5],
            [20, "target answer", -6.0],
            [0, "likely responses", -1.0],
            [20, "likely responses", -0.25],
        ],
    }
    assert run.config["_wandb/visualize/squeeze/curves"]["panel_config"]["panelDefId"] == "wandb/lineseries/v0"

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


@pytest.mark.usefixtures("_closed_run")
def test_auto_without_a_key_is_offline_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    ids = []
    for _ in range(2):
        logger = open_wandb(tmp_path)
        assert logger is not None
        assert logger.experiment.offline
        ids.append(logger.version)
        wandb.finish()
    assert ids[0] == ids[1]


def test_disabled_writes_nothing(tmp_path):
    assert open_wandb(tmp_path, "disabled") is None
    assert not list(tmp_path.iterdir())
