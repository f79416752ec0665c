"""One point from wherever it is to its end, as often as it is started."""

from __future__ import annotations

import signal
from datetime import datetime
from typing import NoReturn

from lit_unlearn.errors import Preempted, UserError
from lit_unlearn.files import is_finished, write_json
from lit_unlearn.recording.lock import is_held, locked
from lit_unlearn.slurm import requeue
from lit_unlearn.sweep.plan import Sweep
from lit_unlearn.sweep.read import begin, is_begun
from lit_unlearn.sweep.work.calls import INTERRUPTED, Failed, Terminated, call, end_on_sigterm
from lit_unlearn.sweep.work.progress import check_progress
from lit_unlearn.sweep.work.shared import with_shared
from lit_unlearn.sweep.work.trials import propose, tell

ENDED = "ended.json"
"""Why the last attempt came to no end; there is none while one goes on, or once it has finished."""
LOG = "log.txt"
"""All that a point's own commands have printed."""


def carry_out(sweep: Sweep) -> None:
    """Work on ``sweep.config.point``; nothing where it is finished.

    Raises:
        UserError: somebody works on it, or it failed; begins with its number.
    """
    sweep, number = sweep if is_begun(sweep) else begin(sweep), sweep.config.point
    assert number is not None
    run_dir, directory = sweep.run_dir(number), sweep.task_dir(number)
    if is_finished(run_dir):
        print(f"point {number} is finished: {run_dir}")
        tell(sweep, number)
        return
    directory.mkdir(parents=True, exist_ok=True)
    if is_held(run_dir):
        raise UserError(f"point {number}: a run is at work in {run_dir}, though nobody waits for it; let it end")
    end_on_sigterm()
    with locked(directory):
        (directory / ENDED).unlink(missing_ok=True)
        try:
            print(f"point {number}: {run_dir}", flush=True)
            check_progress(sweep, number)
            point = with_shared(sweep, sweep.aligned(propose(sweep, sweep.points[number])))
            call("train", [*point.arguments(), f"output_dir={run_dir}", "resume=auto"], directory / LOG)
            tell(sweep, number)
            return
        except Failed as caught:
            failed = caught
        except KeyboardInterrupt:
            failed = Failed(INTERRUPTED, "interrupted")
        except Terminated:
            failed = Failed(128 + signal.SIGTERM, "terminated", terminated=True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what follows is short
        if is_finished(run_dir):  # it was asked to end when it was about to
            tell(sweep, number)
            return
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        told = {"state": failed.state, "reason": failed.reason, "code": failed.code, "when": when}
        write_json(directory / ENDED, told)
    _leave(number, failed)


def _leave(number: int, failed: Failed) -> NoReturn:
    """With the exit code that says what to do with this task."""
    if failed.state == "failed":
        raise UserError(f"point {number}: {failed.reason}")
    if failed.code == INTERRUPTED:
        raise KeyboardInterrupt
    job = None if failed.terminated else requeue()  # else SLURM ends it, and knows why
    left = Preempted(f"point {number}: {failed.reason}", failed.code if failed.terminated else Preempted.CODE)
    left.add("it goes on when it is started again" if job is None else f"SLURM has put job {job} back into its queue")
    raise left
