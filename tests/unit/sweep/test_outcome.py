import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_unlearn.errors import UserError
from lit_unlearn.recording.lock import locked
from lit_unlearn.sweep.outcome.states import JOBS, states, to_do
from lit_unlearn.sweep.outcome.table import collect
from lit_unlearn.sweep.plan import Sweep
from lit_unlearn.sweep.read import begin


def finish(sweep: Sweep, number: int, agg: float | None, utility: float = 0.5, **more: object) -> None:
    run_dir = sweep.run_dir(number)
    run_dir.mkdir(parents=True)
    metrics = {"original": {"utility": 0.5}, "unlearned": {"agg": agg, "utility": utility}, **more}
    (run_dir / "metrics.json").write_text(json.dumps(metrics))


def leave(directory: Path, state: str, reason: str) -> None:
    directory.mkdir(parents=True)
    (directory / "ended.json").write_text(json.dumps({"state": state, "reason": reason}))


def killed(directory: Path) -> None:
    """By a process that holds the directory and dies."""
    directory.mkdir(parents=True)
    (directory / "log.txt").write_text("step 1\nstep 2\n")
    script = (
        "import os, sys, pathlib; from lit_unlearn.recording.lock import locked\n"
        f"with locked(pathlib.Path({str(directory)!r})): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    assert (directory / ".lock").is_file()


def told(sweep: Sweep) -> list[tuple[str, str]]:
    return [(state.name, state.reason) for state in states(sweep)]


def test_states_are_told_apart(sweep):
    begun = begin(sweep("run", "seeds=[0, 1, 2]"))
    finish(begun, 0, 0.1)
    leave(begun.task_dir(1), "failed", "no room")
    killed(begun.task_dir(2))
    leave(begun.task_dir(3), "preempted", "saved")
    begun.run_dir(4).mkdir(parents=True)
    begun.task_dir(5).mkdir(parents=True)
    expected = [
        ("done", ""), ("failed", "no room"), ("killed", "its last line: step 2"), ("preempted", "saved"),
    ]  # fmt: skip
    with locked(begun.run_dir(4)), locked(begun.task_dir(5)):
        starting = ("running", "starting, or waiting for what points share")
        assert told(begun) == [*expected, ("running", ""), starting]
        assert to_do(begun) == [1, 2, 3]
    assert told(begun) == [*expected, ("waiting", ""), ("waiting", "")]


def test_states_in_slurms_queue(sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun = begin(sweep("run"))
    leave(begun.task_dir(0), "preempted", "saved")
    leave(begun.task_dir(1), "preempted", "saved")
    leave(begun.task_dir(2), "failed", "no room")
    (begun.directory / JOBS).write_text('["7"]')
    (tmp_path / "squeue").write_text(
        '#!/bin/sh\ncase "$*" in *"--jobs 7 --states all"*) echo "$ANSWER"; esac; exit $CODE\n'
    )
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("CODE", "0")
    monkeypatch.setenv("ANSWER", "0 PENDING\n1 CANCELLED\n2 COMPLETED")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    gone = "no longer in the queue; submit goes on"
    assert told(begun) == [
        ("waiting", "in the queue; was preempted: saved"), ("cancelled", f"{gone}: saved"), ("failed", "no room"),
        ("cancelled", gone),
    ]  # fmt: skip
    assert to_do(begun) == [1, 2, 3]
    monkeypatch.setenv("ANSWER", "0 RUNNING\n1 CONFIGURING\nN/A RUNNING\n3 COMPLETING")
    started = ("running", "its task is running, says SLURM")
    assert told(begun)[::3] == [started, ("waiting", "in the queue")]
    assert told(begun)[1][0] == "running"
    assert to_do(begun) == [2]


@pytest.mark.parametrize(
    ("said", "name"), [("Invalid job id specified", "cancelled"), ("Unable to contact slurm controller", "waiting")]
)
def test_a_queue_that_does_not_answer_has_cancelled_nothing(said: str, name: str, sweep, tmp_path: Path, monkeypatch):
    begun = begin(sweep("run"))
    (begun.directory / JOBS).write_text('["7"]')
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho slurm_load_jobs error: {said} >&2; exit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert {state for state, _ in told(begun)} == {name}


def test_the_table_ranks_means_over_seeds_and_names_what_is_missing(sweep, capsys: pytest.CaptureFixture[str]):
    begun = begin(sweep("run", "rule={metric: agg, constraints: {utility: {min_ratio: 0.9}}}", "seeds=[0, 1, 2]"))
    for number, agg in enumerate((0.1, 0.2, 0.3, 0.5)):  # rate 1e-3, 2e-3 of seed 0, then of seed 1
        finish(begun, number, agg)
    leave(begun.task_dir(4), "failed", "no room")
    collect(begun)
    told = capsys.readouterr().out
    rows = list(csv.DictReader((begun.directory / "table.csv").open()))
    assert [(row["optim.lr"], row["points"]) for row in rows] == [("0.002", "1 3"), ("0.001", "0 2")]
    assert float(rows[0]["value"]) == float(rows[0]["agg"]) == pytest.approx((0.2 + 0.5) / 2)
    assert float(rows[0]["agg_std"]) == pytest.approx(0.3 / 2**0.5)
    assert "0.350 +- 0.212" in told
    assert "missing: point 4, failed: no room\nmissing: point 5, waiting" in told
    assert "ranked by the numbers that are reported" in told
    lines = [json.loads(line) for line in (begun.directory / "points.jsonl").read_text().splitlines()]
    assert [(line["point"], line["optim.lr"], line["seed"]) for line in lines] == [
        (0, 1e-3, 0), (1, 2e-3, 0), (2, 1e-3, 1), (3, 2e-3, 1),
    ]  # fmt: skip


def test_the_rule_sees_the_selection_half_and_the_table_the_other(sweep, capsys: pytest.CaptureFixture[str]):
    begun = begin(sweep("run", "rule={metric: agg, constraints: {utility: {min_ratio: 0.9}}}", "seeds=[0]"))
    half = {"original": {"utility": 0.5}}
    finish(begun, 0, 0.9, selection={**half, "unlearned": {"agg": 0.7, "utility": 0.4}})  # breaks the constraint there
    finish(begun, 1, 0.2, selection={**half, "unlearned": {"agg": 0.6, "utility": 0.5}})
    collect(begun)
    rows = list(csv.DictReader((begun.directory / "table.csv").open()))
    assert [(row["points"], row["value"], row["agg"]) for row in rows] == [("1", "0.6", "0.2"), ("0", "", "0.9")]
    assert "reported" not in capsys.readouterr().out


def test_a_row_breaks_a_constraint_with_any_of_its_seeds(sweep):
    begun = begin(sweep("run", "rule={metric: agg, constraints: {utility: {min_ratio: 0.9}}}"))
    for number, utility in enumerate((0.5, 0.5, 0.1, 0.5)):
        finish(begun, number, 0.9 if number % 2 == 0 else 0.2, utility)
    collect(begun)
    rows = list(csv.DictReader((begun.directory / "table.csv").open()))
    assert [(row["points"], row["value"]) for row in rows] == [("1 3", "0.2"), ("0 2", "")]


def test_nothing_to_tell_before_the_start(sweep):
    for verb in ("status", "collect"):
        with pytest.raises(UserError, match="nothing was started"):
            sweep(verb)
    collect(begin(sweep("run")))  # all are missing
