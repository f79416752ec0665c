"""The points on this machine, a few at a time, each in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lit_unlearn.errors import UserError
from lit_unlearn.files import is_finished
from lit_unlearn.strategies.visible import visible_gpus
from lit_unlearn.sweep.plan import Sweep
from lit_unlearn.sweep.read import begin
from lit_unlearn.sweep.work.calls import Terminated, end_on_sigterm

_LOOK_SECONDS = 0.1


def run(sweep: Sweep) -> None:
    """Work on all points that are not finished, ``jobs`` at a time; one that fails does not stop the others.

    Raises:
        UserError: some failed; names them.
    """
    sweep = begin(sweep)
    waiting = [point.number for point in sweep.points if not is_finished(sweep.run_dir(point.number))]
    print(f"{len(waiting)} of {len(sweep.points)} points to do, {sweep.config.jobs} at a time: {sweep.directory}")
    failed: list[int] = []
    free = [_share(sweep, slot) for slot in range(sweep.config.jobs)]
    taken: dict[int, dict[str, str]] = {}
    with _pool() as working:
        while waiting or working:
            while waiting and free:
                number = waiting.pop(0)
                taken[number] = free.pop(0)
                working[number] = _start(sweep, number, taken[number])
            for number, process in list(working.items()):
                if process.poll() is not None:
                    del working[number]
                    free.append(taken.pop(number))
                    failed += [number] if process.returncode else []
            time.sleep(_LOOK_SECONDS)
    if failed:
        some = ", ".join(map(str, sorted(failed)))
        raise UserError(f"point {some} did not finish: python -m lit_unlearn.sweep status {sweep.directory} says why")


def _share(sweep: Sweep, slot: int) -> dict[str, str]:
    """The GPUs of one of ``jobs`` points at a time, as the environment names them; in turn where there are too few."""
    trainer = sweep.points[0].config().trainer
    found = visible_gpus()
    if trainer.accelerator == "cpu" or len(found) < trainer.devices:
        return {}
    places = len(found) // trainer.devices
    first = slot % places * trainer.devices
    return {"CUDA_VISIBLE_DEVICES": ",".join(found[first : first + trainer.devices])}


def _start(sweep: Sweep, number: int, environment: Mapping[str, str]) -> subprocess.Popen:
    """In a group of its own, which Ctrl-C in the terminal does not reach."""
    words = [sys.executable, "-m", "lit_unlearn.sweep", "run", str(sweep.directory), f"point={number}"]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True, env={**os.environ, **environment})


@contextmanager
def _pool() -> Iterator[dict[int, subprocess.Popen]]:
    """Processes by point; when this one is asked to end, by Ctrl-C or TERM, they are, and are waited for."""
    working: dict[int, subprocess.Popen] = {}
    end_on_sigterm()
    try:
        yield working
    except (KeyboardInterrupt, Terminated) as asked:
        sent = signal.SIGINT if isinstance(asked, KeyboardInterrupt) else signal.SIGTERM
        for process in working.values():
            os.killpg(process.pid, sent)
        for process in working.values():
            process.wait()
        raise KeyboardInterrupt from asked
