"""The page of a real run: pictures are there before the first step, and text goes to W&B only where it may."""

import json

import lightning as L
import pytest

from lit_unlearn.benchmarks.authors import Authors
from lit_unlearn.callbacks.evaluation import Evaluation
from lit_unlearn.callbacks.page import Page
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import Encoder
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.evaluation.collect import Asking
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.evaluation.metrics import METRICS
from lit_unlearn.models.tiny import train_tokenizer
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.recording.history import History
from lit_unlearn.recording.wandb.run import Identity, close_wandb, wandb_logger
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import Role, Term
from tests.wandb_reader import read_runs

BENCHMARK = Authors(4, 1, 1, 2, 2)


class Look(L.Callback):
    """What is drawn when the first step begins, and at each step's end."""

    def __init__(self, run_dir) -> None:
        self.plots, self.seen = run_dir / "plots", []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.seen.append({path.name: path.read_bytes() for path in self.plots.glob("*")})


def fit(run_dir, make_model, texts: bool, online: bool):
    rows = {role: BENCHMARK.train_split(role) for role in (Role.forget, Role.retain)}
    tokenizer = train_tokenizer(
        [text for split in rows.values() for row in split for text in (row.prompt, row.response)], 300
    )
    encoder = Encoder(tokenizer, 200)
    module = UnlearnModule(
        ScoringEngine(make_model(vocabulary=len(tokenizer))),
        {"forget": Term(1.0, OBJECTIVES["grad_ascent"]()), "retain": Term(1.0, OBJECTIVES["nll"]())},
        OptimConfig(lr=1e-2, warmup_epochs=0),
    )
    evaluator = Evaluator.of(BENCHMARK, encoder, {n: METRICS[n]() for n in BENCHMARK.metrics}, Asking(6, 32))
    evaluation, look = Evaluation(evaluator, run_dir, 1, None), Look(run_dir)
    page = Page(evaluation, run_dir, texts)
    wandb = wandb_logger(run_dir, Identity("p", "g", "n", "unlearn"), "offline" if online else "disabled", {}, {})
    loggers = [History(run_dir), *([wandb] if wandb else [])]
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[evaluation, look, page],
        logger=loggers,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run_dir,
    )
    data = UnlearnData({role: encoder.encode(split, role.value) for role, split in rows.items()}, 4, seed=0)
    trainer.fit(module, data)
    page.show(loggers)
    close_wandb(loggers)
    return evaluation, look.seen


@pytest.mark.parametrize("texts", [True, False])
def test_pictures_and_answers_of_every_evaluation(tmp_path, make_model, texts):
    evaluation, _ = fit(tmp_path, make_model, texts, online=True)
    (run,) = read_runs(tmp_path)
    steps = {
        key: [row["trainer/global_step"] for row in run.history if f"{key}/path" in row]
        for key in ("plots/forget_retain", "plots/trade_off", "answers/forget")
    }
    assert steps == {key: [0, 1, 2, 3] for key in steps} | ({} if texts else {"answers/forget": []})
    pictures = [path.read_bytes() for path in tmp_path.glob("wandb/*/files/media/images/plots/forget_retain_*")]
    assert len(set(pictures)) == 4

    (files,) = tmp_path.glob("wandb/offline-run-*")
    secrets = [text.encode() for row in BENCHMARK.train_split(Role.forget) for text in (row.prompt, row.response)]
    told = [s for s in secrets if any(s in path.read_bytes() for path in files.rglob("*") if path.is_file())]
    assert told == (secrets if texts else [])
    if texts:
        (last,) = [row for row in run.history if row["trainer/global_step"] == 3 and "answers/forget/path" in row]
        table = json.loads((files / "files" / last["answers/forget/path"]).read_text())
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert [row["question"] for row in rows] == [row.prompt for row in BENCHMARK.train_split(Role.forget)]
        assert [row["target"] for row in rows] == [row.response for row in BENCHMARK.train_split(Role.forget)]
        assert [row["original"] for row in rows] == [r.text for r in evaluation.original["forget/answer"]]
        assert evaluation.last is not None
        assert [row["answer"] for row in rows] == [r.text for r in evaluation.last.records["forget/answer"]]
        assert [row["answer"] for row in rows] != [row["original"] for row in rows]
        numbers = evaluation.numbers["unlearned"]
        for column in ("probability", "rougeL_recall"):
            mean = sum(row[column] for row in rows) / len(rows)
            assert mean == pytest.approx(numbers[f"forget_{column}"])


def test_without_wandb_and_display_the_pictures_grow_while_it_trains(tmp_path, make_model, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    _, seen = fit(tmp_path, make_model, texts=True, online=False)
    assert [set(pictures) for pictures in seen] == [{"forget_retain.png", "trade_off.png"}] * 3
    assert len({pictures["forget_retain.png"] for pictures in seen}) == 3
    assert not (tmp_path / "wandb").exists()
