"""The history CSV under a real trainer, cut and resumed."""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities import rank_zero_only

from lit_unlearn.recording.history import History, read_history


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


def test_a_history_of_before_there_were_sections_is_read(tmp_path):
    old = ("eval/forget_probability", "eval/mem", "eval/utility/retain_probability", "train/loss")
    (tmp_path / "history.csv").write_text("step,metric,value\n" + "".join(f"0,{key},0.5\n" for key in old))
    new = {"eval_forget/probability", "eval/mem", "eval_utility/retain_probability", "train/loss"}
    assert read_history(tmp_path / "history.csv").keys() == new


def test_a_number_cut_short_is_not_read(tmp_path):
    (tmp_path / "history.csv").write_text("step,metric,value\n0,a,1.5\n1,a,1.")
    assert read_history(tmp_path / "history.csv") == {"a": [(0, 1.5)]}


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    History(tmp_path).log_metrics({"a": 1.0}, step=0)
    assert not list(tmp_path.iterdir())
