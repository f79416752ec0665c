import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lit_unlearn.errors import Preempted, UserError
from lit_unlearn.recording.lock import locked
from lit_unlearn.sweep.plan import Sweep
from lit_unlearn.sweep.read import begin
from lit_unlearn.sweep.work import calls, here, shared
from lit_unlearn.sweep.work.calls import Failed
from lit_unlearn.sweep.work.here import _share
from lit_unlearn.sweep.work.progress import check_progress
from lit_unlearn.sweep.work.slurm import _options, _ranges, _written
from lit_unlearn.sweep.work.task import _leave
from lit_unlearn.sweep.work.trials import TRIAL, _study, propose, settled, tell
from tests.configs import load
from tests.unit.sweep.conftest import LINES, TINY

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


def test_what_evaluate_cannot_answer_for_is_not_shared(sweep, monkeypatch: pytest.MonkeyPatch):
    """Of a rounded start it would tell another's answers; the rule of ``keep_best`` may read what it does not have."""
    asked = []

    def call(command: str, arguments: list[str], log: Path) -> None:
        config = load([argument for argument in arguments if not argument.startswith("overwrite")])
        made = Path(config.output_dir)
        made.mkdir(parents=True)
        (made / "metrics.json").touch()
        asked.append((made.parent.name, config.evaluation.keep_best))

    monkeypatch.setattr(shared, "call", call)
    rule = {"every_n_epochs": 1, "keep_best": {"metric": "forget_quality"}, "early_stop": {"patience": 2}}
    rule |= {"disruption": {"max": 0.1}, "retain_model": "elsewhere"}
    given = ["finetune=null", "model.path=somewhere", f"evaluation={json.dumps(rule)}"]
    bases = ("full", "nf4")
    full, four = (sweep("run", *given, f"model.lora={{rank: 2, base: {base}}}", f"output_dir={base}") for base in bases)
    assert shared.with_shared(full, full.points[0]).config().evaluation.original_records is not None
    assert asked == [("retain", None), ("original", None)]
    assert shared.with_shared(four, four.points[0]).config().evaluation.original_records is None
    assert asked[2:] == [("retain", None)]


def test_a_point_that_is_to_fail_makes_what_others_share(sweep, monkeypatch: pytest.MonkeyPatch):
    failing = "{terms.forget.objective: {name: dpo}, data.alternates: nowhere.jsonl}"
    two = sweep("run", lines=f"conf: {TINY}\npoints: [{failing}, {{optim.lr: 0.5}}]")
    asked = []

    def call(command: str, arguments: list[str], log: Path) -> None:
        asked.append((command, 'data.alternates="nowhere.jsonl"' in arguments))
        made = Path(next(argument for argument in arguments if argument.startswith("output_dir="))[11:])
        for file in ("target/config.json", "retain/config.json", "metrics.json"):
            (made / file).parent.mkdir(parents=True, exist_ok=True)
            (made / file).touch()

    monkeypatch.setattr(shared, "call", call)
    given = shared.with_shared(two, two.points[0])
    assert asked == [("finetune", False), ("evaluate", False), ("evaluate", False)]
    assert given.config().data.alternates == "nowhere.jsonl"


def test_attempts_that_leave_nothing_new_come_to_an_end(sweep, monkeypatch: pytest.MonkeyPatch):
    begun = begin(sweep("run"))
    begun.task_dir(1).mkdir(parents=True)
    (checkpoints := begun.run_dir(1) / "checkpoints").mkdir(parents=True)

    def attempt(restarts: int) -> None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        check_progress(begun, 1)

    attempt(0)
    (begun.run_dir(1) / "config.yaml").touch()  # written at each start
    attempt(1)
    (checkpoints / "step-4.ckpt").touch()
    attempt(2)
    (checkpoints / ".step-8.ckpt.7.tmp").touch()
    attempt(3)
    with pytest.raises(Failed, match=r"twice without progress; give it more time \(slurm.time\)") as failed:
        attempt(4)
    assert failed.value.state == "failed"
    attempt(0)  # submitted anew


@pytest.mark.parametrize(
    ("may", "next"), [("1", "SLURM has put job 5_3 back into its queue"), ("0", "it goes on when it is started again")]
)
def test_a_preempted_point_says_whether_it_starts_again(may: str, next: str, tmp_path: Path, monkeypatch):
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho JobState=RUNNING Requeue={may}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, value in (("ARRAY_JOB_ID", "5"), ("ARRAY_TASK_ID", "3"), ("JOB_ID", "8")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(Preempted) as told:
        _leave(3, Failed(75, "step 8 is saved"))
    assert str(told.value) == f"preempted: point 3: step 8 is saved; {next}"


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


def test_how_many_processes_auto_stands_for_is_said_to_slurm(sweep, tmp_path: Path):
    (tmp_path / "own.yaml").write_text(f"{TINY.read_text()}\ndebug: true".replace("accelerator: cpu", "devices: auto"))
    lines = "conf: own.yaml"
    with pytest.raises(UserError, match=r"trainer.devices=auto counts .* give slurm.ntasks_per_node=N"):
        _options(sweep("submit", lines=lines))
    given = "slurm={ntasks_per_node: 4, gpus_per_node: 4}"
    assert _options(sweep("submit", given, lines=lines)) == ["--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=4"]
    few = sweep("submit", "slurm.ntasks-per-node=4", "trainer.accelerator=cuda", lines=lines)
    assert _options(few) == ["--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=4"]
    assert _options(sweep("submit", "trainer.devices=2", lines=lines)) == ["--nodes=1", "--ntasks-per-node=2"]


def test_points_at_a_time_share_the_gpus(sweep, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,3,5,7")
    two = sweep("run", "trainer.devices=2", "trainer.accelerator=auto")
    shares = [_share(two, slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert shares == ["0,2", "3,5", "0,2"]
    assert _share(sweep("run"), 0) == {}  # on the CPU


def test_points_here_are_all_worked_on_and_one_that_fails_is_named(sweep, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(here, "_LOOK_SECONDS", 0.01)
    started = []

    def start(sweep: Sweep, number: int, environment: dict[str, str]) -> subprocess.Popen:
        started.append((number, environment["CUDA_VISIBLE_DEVICES"]))
        return subprocess.Popen(["sh", "-c", f"exit {int(number == 2)}"])

    monkeypatch.setattr(here, "_start", start)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with pytest.raises(UserError, match="point 2 did not finish"):
        here.run(sweep("run", "jobs=2", "trainer.accelerator=auto"))
    assert [number for number, _ in started] == [0, 1, 2, 3]
    assert [gpu for _, gpu in started[:2]] == ["4", "7"]


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
    (search.task_dir(2) / TRIAL).unlink()
    propose(search, search.points[2])  # tells those that were killed before they did
    tell(search, 0)  # once more after a requeue
    assert search.config.search is not None
    trials = _study(search, search.config.search, 0).trials
    assert [(trial.state.name, trial.value) for trial in trials] == [
        ("COMPLETE", 0.3), ("PRUNED", None), ("RUNNING", None),
    ]  # fmt: skip
