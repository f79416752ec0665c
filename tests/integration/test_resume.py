"""An interrupted run goes on as if nothing had happened; a diverging one stops and keeps what was good."""

import json
import os
import signal
from datetime import datetime
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers.utils import chat_template_utils

from lit_unlearn import evaluate, finetune
from lit_unlearn.data.tokenize import Encoder
from lit_unlearn.errors import NonFiniteLoss, Preempted, UserError
from lit_unlearn.models import tiny
from lit_unlearn.recording.checkpoints import checkpoints
from lit_unlearn.recording.history import read_history
from lit_unlearn.recording.lock import locked
from lit_unlearn.run import resume
from lit_unlearn.train import main
from lit_unlearn.training.module import UnlearnModule

CONF = Path(__file__).parent / "tiny.yaml"
BSS = [
    "terms.forget={weight: 0.5, objective: {name: npo}}",
    "terms.belief={weight: 0.5, objective: {name: npo, role: belief}}",
    "beliefs={num_samples: 2, max_new_tokens: 6, every_n_epochs: 2}",
    "evaluation.every_n_epochs=0",
    "logging.mode=disabled",
    "trainer.max_epochs=4",
]


def losses(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    history = read_history(run_dir / "history.csv")
    return {name: points for name, points in history.items() if name.startswith(("train/", "squeeze/"))}


def lose_power() -> None:
    raise RuntimeError("the power went out")


def preempt() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


CASES = [
    (preempt, ["trainer.checkpoint_every_n_epochs=0"]),
    pytest.param(preempt, ["privacy=hashed", "beliefs.every_n_epochs=null"], marks=pytest.mark.slow),
    pytest.param(lose_power, [], marks=pytest.mark.slow),
    pytest.param(lose_power, ["privacy=hashed", "beliefs.every_n_epochs=null"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("stop", "options"), CASES, ids=["signal", "signal, hashed", "power", "power, hashed"])
def test_resumed_run_walks_the_straight_run_s_path(stop, options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped inside epoch 4, whose beliefs were sampled at the start of epoch 3 and live in the checkpoint.

    Without text in the checkpoint, those sampled once come from the policy's start again, and so do the squeeze's
    responses. A signal that comes within a step is obeyed behind it.
    """
    options = [*BSS, *options]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    main([f"conf={CONF}", f"output_dir={straight}", *options])
    step = UnlearnModule.training_step

    def failing(self: UnlearnModule, batch, batch_idx: int):
        if "belief" in self.terms and self.global_step == 6 and not (stopped / "resumed").exists():
            stop()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(UnlearnModule, "training_step", failing)
    with pytest.raises((RuntimeError, Preempted)) as told:
        main([f"conf={CONF}", f"output_dir={stopped}", *options, "resume=auto"])
    if stop is preempt:
        saved = stopped / "checkpoints" / "step-00000007.ckpt"
        assert str(told.value) == f"preempted: {saved} is whole; go on with resume=auto"
    (stopped / "resumed").touch()
    main([f"conf={CONF}", f"output_dir={stopped}", *options, "resume=auto"])
    main([f"conf={CONF}", f"output_dir={stopped}", *options, "resume=auto"])  # there is nothing left to do

    timed = ("train/tokens_per_second", "train/step_seconds", "train/memory_gib")
    expected = {name: points for name, points in losses(straight).items() if name not in timed}
    assert {name: points for name, points in losses(stopped).items() if name not in timed} == expected
    assert (stopped / "metrics.json").read_bytes() == (straight / "metrics.json").read_bytes()


@pytest.mark.slow
def test_resuming_a_finished_run_asks_the_final_questions_and_loses_nothing(tmp_path: Path):
    """As after an interruption of the final evaluation: there is no step left to train."""
    run_dir = tmp_path / "run"
    options = [f"conf={CONF}", f"output_dir={run_dir}", "logging.mode=disabled", "squeeze=null"]
    main(options)
    before = (run_dir / "metrics.json").read_bytes()
    (run_dir / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"optim\.lr was 0.001 and is 1e-09"):
        main([*options, "resume=true", "optim.lr=1e-9"])
    (run_dir / "reference").rename(run_dir / "elsewhere")
    with pytest.raises(UserError, match="the policy has moved"):  # and cannot be scored as the start
        main([*options, "resume=true"])
    (run_dir / "elsewhere").rename(run_dir / "reference")
    main([*options, "resume=true"])
    assert (run_dir / "metrics.json").read_bytes() == before


def test_a_run_goes_on_on_another_day_with_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Under a template that prints today's date; every row, probe and cached reference score is the first day's."""
    run_dir, rows = tmp_path / "run", []
    printed = "<|system|>Today is {{ strftime_now('%d %b %Y') }}."
    monkeypatch.setattr(tiny, "_TEMPLATE", printed + tiny._TEMPLATE)
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, *args: rows.append(encode(self, *args)) or rows[-1])
    options = [f"conf={CONF}", f"output_dir={run_dir}", "logging.mode=disabled", "squeeze=null", "trainer.max_epochs=1"]
    options += ["finetune.max_epochs=2"]

    def start(day: int, *more: str) -> list:
        now = datetime(2026, 3, day)
        monkeypatch.delenv(resume.STARTED, raising=False)  # as a process of its own
        monkeypatch.setattr(resume, "date", type("Calendar", (), {"today": now.date}))
        monkeypatch.setattr(chat_template_utils, "datetime", type("Clock", (), {"now": lambda: now}))
        rows.clear()
        main([*options, *more])
        return list(rows)

    first = start(1)
    metrics = (run_dir / "metrics.json").read_bytes()
    stores = sorted(path.name for path in (run_dir / "reference").iterdir())
    (run_dir / "metrics.json").unlink()  # stopped before its last file
    again = start(2, "resume=true")
    assert len(again) >= 4
    assert all(split in first for split in again)  # the first start has finetuned too
    assert sorted(path.name for path in (run_dir / "reference").iterdir()) == stores
    assert (run_dir / "metrics.json").read_bytes() == metrics
    assert OmegaConf.load(run_dir / "config.yaml").data.prompt.date == "2026-03-01"
    with pytest.raises(UserError, match=r"data\.prompt\.date was \"2026-03-01\" and is \"2026-03-02\""):
        start(2, "resume=true", "data.prompt.date=2026-03-02")


def test_non_finite_loss_names_term_and_rows_and_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_dir = tmp_path / "run"
    step = UnlearnModule.training_step

    def poisoned(self: UnlearnModule, batch, batch_idx: int):
        if "retain" in self.terms and self.global_step == 3:
            with torch.no_grad():
                self.engine.model.get_input_embeddings().weight.fill_(float("inf"))  # type: ignore[operator]
        return step(self, batch, batch_idx)

    monkeypatch.setattr(UnlearnModule, "training_step", poisoned)
    options = ["logging.mode=disabled", "squeeze=null", "evaluation.every_n_epochs=0"]
    with pytest.raises(NonFiniteLoss, match=r"'forget' is nan at step 3, epoch 1; rows of this rank: .*'forget': \["):
        main([f"conf={CONF}", f"output_dir={run_dir}", *options])
    kept = torch.load(checkpoints(run_dir / "checkpoints")[0], weights_only=True)
    assert kept["global_step"] == 2
    assert all(torch.isfinite(weight).all() for weight in kept["state_dict"].values())
    assert not (run_dir / "metrics.json").exists()


def test_a_run_is_not_overwritten_silently(tmp_path: Path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.json").write_text(json.dumps({"precious": 1}))
    with pytest.raises(UserError, match="not empty; choose another output_dir"):
        main([f"conf={CONF}", f"output_dir={run_dir}"])
    assert json.loads((run_dir / "metrics.json").read_text()) == {"precious": 1}


def listing(run_dir: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in run_dir.rglob("*")}


def test_a_finished_run_says_so_and_a_held_one_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Both starts and their fault come from real processes' point of view: exit codes, one line, nothing written."""
    run_dir = tmp_path / "run"
    options = [f"conf={CONF}", f"output_dir={run_dir}", "logging.mode=disabled", "squeeze=null"]
    options += ["finetune.max_epochs=2", "trainer.max_epochs=1", "evaluation.max_new_tokens=4"]
    main(options)
    before = listing(run_dir)
    capsys.readouterr()
    main([*options, "resume=true"])
    assert capsys.readouterr().out.startswith(f"{run_dir} is finished")
    assert listing(run_dir) == before

    (run_dir / "metrics.json").unlink()
    with locked(run_dir):
        before = listing(run_dir)
        for more in (["resume=true"], [], ["overwrite=true"]):
            with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
                main([*options, *more])
        assert listing(run_dir).keys() == before.keys()

    (run_dir / "records" / "original" / "complete").unlink()
    with pytest.raises(UserError, match="the original model can no longer be asked"):  # the policy has moved
        main([*options, "resume=true"])


def test_a_retain_model_is_asked_in_tokens_of_its_own(tmp_path: Path):
    """Beside a target with another tokenizer its numbers are those it has beside a target with its own."""
    for name, vocabulary in (("small", 300), ("large", 400)):
        tiny = f"model.tiny={{vocab_size: {vocabulary}, hidden_size: 48, num_layers: 2, num_heads: 2}}"
        options = [f"conf={CONF}", "logging.mode=disabled", "finetune.max_epochs=8", tiny]
        finetune.main([*options, f"output_dir={tmp_path / name}"])
    fixed = [f"conf={CONF}", "finetune=null", f"evaluation.retain_model={tmp_path / 'small' / 'retain'}"]
    numbers = []
    for name in ("small", "large"):
        evaluate.main([*fixed, f"model.path={tmp_path / name / 'target'}", f"output_dir={tmp_path / 'e' / name}"])
        numbers.append(json.loads((tmp_path / "e" / name / "metrics.json").read_text()))
    assert numbers[0]["retain_model"] == numbers[1]["retain_model"]
    assert numbers[0]["evaluated"] != numbers[1]["evaluated"]
