import json
import sys
import threading
import time
from pathlib import Path

import pytest

from lit_unlearn.recording.lock import locked
from lit_unlearn.sweep.read import begin
from lit_unlearn.sweep.work import calls, shared
from lit_unlearn.sweep.work.calls import Failed
from lit_unlearn.sweep.work.here import _share
from lit_unlearn.sweep.work.slurm import _ranges, _written
from lit_unlearn.sweep.work.trials import TRIAL, _study, propose, settled, tell
from tests.unit.sweep.conftest import LINES

MODELS, ANSWERS = shared.models_key, shared.answers_key


@pytest.mark.parametrize(
    ("settings", "same_models", "same_answers"),
    [
        ({"optim.lr": 0.5, "terms.retain": None, "trainer.max_epochs": 7, "data.batch_size": 2}, True, True),
        (
            {"evaluation.keep_best": None, "output_dir": "x", "logging.group": "y", "model.lora": {"rank": 2}},
            True,
            True,
        ),
        ({"trainer.checkpoint_every_n_epochs": 0, "trainer.keep_checkpoints": 5}, True, True),
        ({"evaluation.max_new_tokens": 3}, True, False),
        ({"data.benchmark.num_general": 3}, False, False),
        ({"data.prompt.date": "2020-02-02"}, False, False),
        ({"seed": 3}, False, False),
        ({"finetune.optim.lr": 0.01}, False, False),
        ({"model.tiny.hidden_size": 64}, False, False),
        ({"trainer.precision": "bf16-mixed"}, False, False),
        ({"privacy": "hashed"}, False, False),
        ({"strategy.name": "single"}, False, False),
    ],
)
def test_what_points_share_depends_on_what_makes_it(sweep, settings, same_models: bool, same_answers: bool):
    point = sweep().points[0]
    before, after = point.config(), point.having(settings).config()
    assert (MODELS(before) == MODELS(after), ANSWERS(before) == ANSWERS(after)) == (same_models, same_answers)


def test_a_finished_model_answers_alike_whatever_the_seed(sweep):
    start = sweep().points[0].having({"finetune": None, "model.path": "somewhere"})
    seeds = {ANSWERS(start.having({"seed": seed}).config()) for seed in (0, 1)}
    assert len(seeds) == 1
    assert ANSWERS(start.having({"evaluation.retain_model": "x"}).config()) not in seeds


def test_what_one_point_needs_alone_its_run_makes(sweep):
    alone = sweep(lines=LINES.replace("[1.0e-3, 2.0e-3]", "[1.0e-3]"))
    point = shared.with_shared(alone, alone.points[0])
    assert point.config().finetune is not None
    assert not (alone.shared_dir / "models").exists()


def test_one_makes_it_and_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shared, "_LOOK_SECONDS", 0.01)
    made = []

    def make() -> None:
        made.append(threading.get_ident())
        time.sleep(0.1)
        (tmp_path / "whole").touch()

    def once() -> None:
        shared._make_once(tmp_path, tmp_path / "run", (tmp_path / "whole").is_file, make)

    threads = [threading.Thread(target=once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert not (tmp_path / ".lock").exists()


def test_what_an_orphan_still_makes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A finetuning whose task was killed goes on by itself."""
    monkeypatch.setattr(shared, "_LOOK_SECONDS", 0.01)
    made: list[int] = []
    (run_dir := tmp_path / "run").mkdir()
    with locked(run_dir):
        waits = threading.Thread(
            target=shared._make_once, args=(tmp_path, run_dir, (run_dir / "whole").is_file, lambda: made.append(1))
        )
        waits.start()
        time.sleep(0.05)
        (run_dir / "whole").touch()
    waits.join(10)
    assert not waits.is_alive()
    assert not made


@pytest.mark.parametrize(
    ("said", "code", "state", "reason"),
    [
        (
            "error: optim.lr is wrong\nsrun: error: n1: task 0: Exited with exit code 2",
            2,
            "failed",
            "optim.lr is wrong",
        ),
        ("Traceback ...\n  File x\ntorch.OutOfMemoryError: no room", 1, "failed", "torch.OutOfMemoryError: no room"),
        ("step 3", 1, "failed", "exit code 1; its last line: step 3"),
        ("", 1, "failed", "exit code 1"),
        (
            "preempted: step 8 is saved; go on\nslurmstepd-n1: error: *** X ***",
            75,
            "preempted",
            "step 8 is saved; go on",
        ),
        ("loading", -9, "failed", "ended by signal 9; its last line: loading"),
        ("loading", -10, "preempted", "ended by signal 10; its last line: loading"),
        ("", 130, "stopped", "ended by signal 2"),
    ],
)
def test_why_a_command_ended(said: str, code: int, state: str, reason: str, tmp_path: Path, monkeypatch):
    (tmp_path / "log.txt").write_text("error: of the attempt before\n")
    end = f"os.kill(os.getpid(), {-code})" if code < 0 else f"os._exit({code})"
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport os\nprint({said!r}, flush=True)\n{end}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(Failed) as failed:
        calls.call("train", [], tmp_path / "log.txt")
    assert (failed.value.state, failed.value.reason) == (state, reason)


def test_options_of_sbatch():
    assert _ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    written = _written({"time": "4:00:00", "gpus_per_node": 2, "exclusive": True, "account": None, "overcommit": False})
    assert written == ["--time=4:00:00", "--gpus-per-node=2", "--exclusive"]


def test_points_at_a_time_share_the_gpus(sweep, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,3,5,7")
    two = sweep("run", "trainer.devices=2", "trainer.accelerator=auto")
    shares = [_share(two, slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert shares == ["0,2", "3,5", "0,2"]
    assert _share(sweep("run"), 0) == {}  # on the CPU


def test_a_point_with_a_trial_keeps_it(sweep):
    pytest.importorskip("optuna")
    lines = LINES.partition("grid")[0] + (
        "search: {num_trials: 3, space: {optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}, "
        "trainer.max_epochs: {low: 1, high: 9}, terms.forget.objective: {choices: [{name: npo}, {name: bst}]}}}\n"
        "rule: {metric: agg, constraints: {utility: {min_ratio: 0.9}}}"
    )
    search = begin(sweep("run", lines=lines))
    proposed = []
    for point in search.points:
        search.task_dir(point.number).mkdir(parents=True)
        proposed.append(propose(search, point))
    assert len({point.config().optim.lr for point in proposed}) == 3
    assert settled(search, search.points[1]) == proposed[1]
    (search.task_dir(1) / TRIAL).unlink()  # killed between the study's line and its own file
    assert propose(search, search.points[1]) == proposed[1]
    for number, agg, utility in ((0, 0.3, 0.5), (1, 0.9, 0.4)):
        run_dir = search.run_dir(number)
        run_dir.mkdir(parents=True)
        halves = {"original": {"utility": 0.5}, "unlearned": {"agg": agg, "utility": utility}}
        (run_dir / "metrics.json").write_text(json.dumps({"unlearned": {}, "original": {}, "selection": halves}))
        tell(search, number)
        tell(search, number)  # once more after a requeue
    assert search.config.search is not None
    trials = _study(search, search.config.search, 0).trials
    assert [(trial.state.name, trial.value) for trial in trials] == [
        ("COMPLETE", 0.3), ("PRUNED", None), ("RUNNING", None),
    ]  # fmt: skip
