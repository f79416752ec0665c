"""The saved model is the chosen step's, bit by bit; a training that goes too far, or brings no better, ends."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_unlearn import finetune
from lit_unlearn.benchmarks.authors import Authors
from lit_unlearn.data.tokenize import Encoder
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.choice.held_out import hold_out
from lit_unlearn.evaluation.choice.settings import DisruptionConfig
from lit_unlearn.evaluation.metrics import METRICS
from lit_unlearn.evaluation.records import read_records
from lit_unlearn.evaluation.report import report
from lit_unlearn.recording.history import read_history
from lit_unlearn.run import unlearn
from lit_unlearn.train import main
from lit_unlearn.training.module import UnlearnModule
from tests.integration.killing import finish, kill_while_writing

pytestmark = pytest.mark.slow
CONF = f"conf={Path(__file__).parent / 'tiny.yaml'}"
SMALL = ["finetune=null", "squeeze=null", "logging.mode=disabled", "evaluation.max_new_tokens=4"]
SMALL += ["optim.schedule=constant", "trainer.max_epochs=4", "export.dtype=float32"]
STEPS_PER_EPOCH, BEST = 2, 4
MIDDLE = "evaluation.keep_best={metric: forget_probability, mode: min, constraints: {forget_probability: {min: 0.15}}}"
LORA = "model.lora={rank: 4}"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    models = tmp_path_factory.mktemp("start") / "models"
    finetune.main([CONF, f"output_dir={models}", "finetune.max_epochs=40", "logging.mode=disabled"])
    return [CONF, *SMALL, f"model.path={models / 'target'}", f"evaluation.retain_model={models / 'retain'}"]


@pytest.fixture(scope="module")
def chosen(start: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second epoch of four is the best."""
    path = tmp_path_factory.mktemp("chosen") / "run"
    main([*start, MIDDLE, f"output_dir={path}"])
    return path


def numbers(run_dir: Path) -> dict:
    return json.loads((run_dir / "metrics.json").read_text())


def model(run_dir: Path) -> bytes:
    return (run_dir / "model" / "model.safetensors").read_bytes()


def what_is_chosen(run_dir: Path) -> Iterator[bytes]:
    yield from (model(run_dir), (run_dir / "metrics.json").read_bytes())
    yield from (path.read_bytes() for path in sorted((run_dir / "records").glob("*/*.jsonl")))


def test_the_saved_model_is_that_of_a_run_stopped_at_the_best_step(start, chosen, tmp_path, capsys):
    told = numbers(chosen)["chosen"]
    assert (told["step"], told["epoch"], told["considered"], told["keeps_constraints"]) == (BEST, 2, 4, True)
    assert told["value"] == numbers(chosen)["selection"]["unlearned"]["forget_probability"] > 0.15
    assert not (chosen / "chosen").exists()
    stopped = tmp_path / "stopped"
    main([*start, "evaluation.selection={}", f"trainer.max_steps={BEST}", f"output_dir={stopped}"])
    assert model(stopped) == model(chosen)
    for name in ("original", "unlearned", "retain_model", "selection"):
        assert numbers(stopped)[name] == numbers(chosen)[name], name
    assert "chosen" not in numbers(stopped)
    history = read_history(chosen / "history.csv")
    assert [step for step, _ in history["train/loss"]][-1] >= 7  # it went on
    curve = dict(history["select_forget/probability"])
    assert sorted(curve) == [0, 2, 4, 6, 8]
    assert curve[8] < curve[6] < 0.15 < curve[BEST] == told["value"] < curve[2]
    assert dict(history["eval_forget/probability"])[BEST] == numbers(chosen)["unlearned"]["forget_probability"]


def test_every_number_can_be_computed_from_the_records(chosen):
    """What is reported is of the report half alone, and what chooses of the other."""
    selected = json.loads((chosen / "records" / "selection.json").read_text())
    metrics = {name: METRICS[name]() for name in Authors().metrics}
    assert {name: len(ids) for name, ids in selected.items()}["forget"] == 4
    for half, found in ((True, numbers(chosen)["selection"]), (False, numbers(chosen))):
        cut = {
            name: {
                probe: [row for row in rows if (row.id in selected[probe.partition("/")[0]]) == half]
                for probe, rows in read_records(chosen / "records" / name).items()
            }
            for name in ("original", "unlearned", "retain_model")
        }
        for name, records in cut.items():
            assert report(records, metrics, cut["retain_model"]) == pytest.approx(found[name]), (half, name)


def test_adapters_are_put_back(start, tmp_path):
    largest = "evaluation.keep_best={metric: forget_probability}"
    main([*start, LORA, largest, "optim.lr=1e-2", "trainer.max_epochs=2", f"output_dir={tmp_path / 'run'}"])
    assert numbers(tmp_path / "run")["chosen"]["step"] == STEPS_PER_EPOCH
    stop = f"trainer.max_steps={STEPS_PER_EPOCH}"
    main([*start, LORA, "optim.lr=1e-2", "evaluation.selection={}", stop, f"output_dir={tmp_path / 'stopped'}"])
    assert model(tmp_path / "run") == model(tmp_path / "stopped")
    assert numbers(tmp_path / "run")["unlearned"] == numbers(tmp_path / "stopped")["unlearned"]


@pytest.mark.parametrize("kill", range(int(os.environ.get("LIT_UNLEARN_KILLS", "1"))))
def test_killed_while_the_best_is_written_and_resumed(kill, start, chosen, tmp_path):
    """kill -9 in the middle of the second epoch's weights, or of the first's."""
    number = 2 - kill % 2
    for attempt in range(5):  # the write may be quicker
        argv, output = [*start, MIDDLE, f"output_dir={tmp_path / str(attempt)}"], tmp_path / "output.txt"
        if kill_while_writing(argv, output, tmp_path / str(attempt) / "chosen", number):
            break
    else:
        pytest.fail("no kill came in time")
    finish([*argv, "resume=true"], output)
    assert list(what_is_chosen(tmp_path / str(attempt))) == list(what_is_chosen(chosen))
    assert not list((tmp_path / str(attempt)).rglob(".*.tmp"))


def test_resumed_behind_the_best_step(start, chosen, tmp_path, monkeypatch):
    """The best lies in a checkpoint's past, and an older checkpoint's best is there as long as that checkpoint."""
    run_dir, step = tmp_path / "run", UnlearnModule.training_step

    def failing(self: UnlearnModule, batch, batch_idx: int):
        if self.global_step == 7 and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            raise RuntimeError("the power went out")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(UnlearnModule, "training_step", failing)
    argv = [*start, MIDDLE, f"output_dir={run_dir}", "trainer.keep_checkpoints=3"]
    with pytest.raises(RuntimeError, match="power"):
        main(argv)
    assert sorted(path.name for path in (run_dir / "chosen").iterdir()) == ["step-00000002", "step-00000004"]
    older = tmp_path / "older"
    shutil.copytree(run_dir, older)
    main([*argv, "resume=true"])
    for path in [older / "checkpoints" / f"step-{number:08d}.ckpt" for number in (4, 6)]:
        path.unlink()
    main([*start, MIDDLE, f"output_dir={older}", "trainer.keep_checkpoints=3", "resume=true"])
    for resumed in (run_dir, older):
        assert list(what_is_chosen(resumed)) == list(what_is_chosen(chosen))


def test_checkpoints_ahead_of_an_evaluation_find_what_they_count_on(start, tmp_path, monkeypatch):
    """Each evaluation brings a better model, and checkpoints are written before the one of their step."""
    run_dir, argv = tmp_path / "run", [*start, "evaluation.keep_best={metric: forget_probability, mode: min}"]
    argv += ["trainer.checkpoint_every_n_epochs=0", "trainer.checkpoint_every_n_steps=2", "trainer.keep_checkpoints=3"]
    with monkeypatch.context() as patch:
        patch.setattr(unlearn, "save_trained", fail)
        with pytest.raises(RuntimeError, match="power"):
            main([*argv, f"output_dir={run_dir}"])
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}.ckpt" for step in (4, 6, 8)]
    found = []
    for number in range(1, len(kept) + 1):
        shutil.copytree(run_dir, tmp_path / str(number))
        for name in kept[number:]:
            (tmp_path / str(number) / "checkpoints" / name).unlink()
        main([*argv, f"output_dir={tmp_path / str(number)}", "resume=true"])
        assert numbers(tmp_path / str(number))["chosen"]["step"] == 8
        found.append(list(what_is_chosen(tmp_path / str(number))))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("options", [[], ["evaluation.early_stop.patience=1"]], ids=["all epochs", "early stop"])
def test_ended_and_resumed_it_does_not_go_on(options, start, chosen, tmp_path, monkeypatch):
    """Stopped while the model is saved, when there is nothing left to train; an early stop stays one."""
    run_dir = tmp_path / "run"
    argv = [*start, MIDDLE, *options, f"output_dir={run_dir}"]
    with monkeypatch.context() as patch:
        patch.setattr(unlearn, "save_trained", fail)
        with pytest.raises(RuntimeError, match="power"):
            main(argv)
    history = read_history(run_dir / "history.csv")
    (run_dir / "chosen").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"the weights of the best step so far, {BEST}, are not in"):
        main([*argv, "resume=true"])
    (tmp_path / "elsewhere").rename(run_dir / "chosen")
    main([*argv, "resume=true"])
    assert read_history(run_dir / "history.csv") == history
    assert model(run_dir) == model(chosen)
    found, expected = numbers(run_dir), numbers(chosen)
    if options:
        last = BEST + STEPS_PER_EPOCH
        assert found["chosen"].pop("stopped")["step"] == last == max(step for step, _ in history["eval/mem"])
        assert (found["chosen"].pop("considered"), expected["chosen"].pop("considered")) == (3, 4)
        assert expected["chosen"].pop("stopped") is None
    assert found == expected


def fail(*args: object) -> None:
    raise RuntimeError("the power went out")


def test_a_budget_of_disruption_ends_the_run_and_the_saved_model_keeps_it(start, tmp_path, capsys):
    run_dir, rows = tmp_path / "run", 6
    budget = f"evaluation.disruption={{max: 0.05, num_rows: {rows}, every_n_steps: 1}}"
    main([*start, budget, f"output_dir={run_dir}"])
    told, curve = numbers(run_dir)["chosen"], dict(read_history(run_dir / "history.csv")["eval/disruption"])
    assert told["stopped"]["step"] == told["step"] + 1 == max(curve) < 8
    assert curve[told["step"]] <= 0.05 < curve[told["step"] + 1]
    assert f"saved: step {told['step']} (epoch" in capsys.readouterr().out
    found = numbers(run_dir)["unlearned"]["disruption"]
    assert found == pytest.approx(curve[told["step"]], abs=1e-9)
    assert found == pytest.approx(plain_divergence(start, run_dir, rows), rel=1e-4)


def plain_divergence(start: list[str], run_dir: Path, num_rows: int) -> float:
    """KL(start || exported) by the formula, a row at a time."""
    path = next(argument.removeprefix("model.path=") for argument in start if argument.startswith("model.path="))
    before, after = (AutoModelForCausalLM.from_pretrained(where).float().eval() for where in (path, run_dir / "model"))
    benchmark = Authors(6, 2, num_holdout_authors=1, questions_per_author=4, num_general=4)
    encoder = Encoder(AutoTokenizer.from_pretrained(path), 96)
    held = hold_out(DisruptionConfig(num_rows=num_rows), {}, benchmark, encoder, 0, 1, 4)
    assert len(held) == num_rows
    total, count = 0.0, 0
    for row in held:
        ids = torch.tensor([[*row.prompt, *row.answer]])
        with torch.no_grad():
            p, q = (net(ids).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1) for net in (before, after))
        total += (p.exp() * (p - q)).sum().item()
        count += len(row.answer)
    return total / count


def test_where_nothing_keeps_the_rule_the_last_step_is_saved_and_told(start, tmp_path, capsys):
    run_dir = tmp_path / "run"
    rule = "evaluation.keep_best={metric: agg, constraints: {forget_probability: {min_ratio: 2}}}"
    main([*start, rule, f"trainer.max_steps={BEST}", f"output_dir={run_dir}"])
    told = numbers(run_dir)["chosen"]
    assert (told["step"], told["value"], told["keeps_constraints"]) == (BEST, None, False)
    assert "forget_probability=" in told["broken"][0]
    assert "none of 2 steps keeps to the rule" in capsys.readouterr().out
    assert load_file(run_dir / "model" / "model.safetensors")
