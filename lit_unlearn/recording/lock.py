"""One directory, one run: who holds it, and how a holder that has died is told from one that lives."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from lit_unlearn.errors import UserError

log = logging.getLogger(__name__)

LOCK = ".lock"
BEAT_SECONDS = 30.0
STALE_SECONDS = 600.0
"""A holder on another machine that has given no sign of life for so long is dead."""
_SLURM = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID")


class InUse(UserError):
    """Another living run holds the directory."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold ``directory``, which exists, for the body; a file in it says who does, its time that they still do.

    Raises:
        InUse: another living run holds it.
        UserError: it cannot be written to.
    """
    path, own = directory / LOCK, _holder()
    try:
        with _one_at_a_time(directory):
            _take(path, own)
    except OSError as error:
        raise UserError(f"output_dir={directory} cannot be written to: {error.strerror}") from error
    released = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, own, released), name="lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        released.set()
        beat.join()
        if not _is_lost(path, own):
            path.unlink(missing_ok=True)


def is_held(directory: Path) -> bool:
    """Whether a living run holds it; one that was killed does not, though its file is there."""
    path = directory / LOCK
    holder = _read(path)
    return holder is not None and _lives(path, holder, _holder())


def _take(path: Path, own: Mapping[str, object]) -> None:
    """Raises InUse: another run holds it, or was quicker."""
    holder = _read(path)
    if holder is not None:
        _refuse_living(path, holder, own)
        path.unlink(missing_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(own))
    except FileExistsError:
        raise InUse(f"output_dir={path.parent} has just been taken by another start") from None


def _holder() -> dict[str, object]:
    """This process, in words that another can check."""
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "namespace": _namespace(),
        "pid": os.getpid(),
        "process": _process(os.getpid()),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "slurm": _slurm_task(),
    }


def _slurm_task() -> list[str] | None:
    """The same before and after SLURM puts a job back into its queue; None outside SLURM."""
    array, task, job = (os.environ.get(name) for name in _SLURM)
    if array and task:
        return [array, task]
    return [job] if job else None


def _namespace() -> str | None:
    """Process ids mean something only within one; containers of one host may differ in it."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


def _process(pid: int) -> str | None:
    """What tells a process from a later one with its number: boot and start time; None: it is gone, or no Linux."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else f"{boot}:{fields[18]}"  # proc(5): starttime is the 22nd of all


def _refuse_living(path: Path, holder: Mapping[str, object], own: Mapping[str, object]) -> None:
    if _lives(path, holder, own):
        raise InUse(
            f"output_dir={path.parent} is in use by process {holder.get('pid')} on {holder.get('host')}, started "
            f"{holder.get('started')}, last sign of life {_silent_seconds(path):.0f} s ago; wait for it, or choose "
            "another output_dir"
        )
    log.info("%s was left by process %s on %s, which is gone", path, holder.get("pid"), holder.get("host"))


def _lives(path: Path, holder: Mapping[str, object], own: Mapping[str, object]) -> bool:
    here = (holder.get("host"), holder.get("namespace")) == (own["host"], own["namespace"])
    if here and isinstance(pid := holder.get("pid"), int):
        return _alive(pid, holder.get("process"))
    same_task = own["slurm"] is not None and holder.get("slurm") == own["slurm"]
    return not same_task and _silent_seconds(path) < STALE_SECONDS


def _alive(pid: int, process: object) -> bool:
    if process is not None:
        return _process(pid) == process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _silent_seconds(path: Path) -> float:
    """By the clock of the file system, which all machines share: its time for a new file less the lock's."""
    probe = path.with_name(f"{LOCK}.{uuid.uuid4().hex}.tmp")
    try:
        probe.touch()
        return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
    except FileNotFoundError:  # let go in this moment
        return STALE_SECONDS
    finally:
        probe.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, object] | None:
    """None: nobody holds it. A file that cannot be read is held by somebody unknown."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Of two starts that find the same dead holder, one takes its place; the kernel frees what a killed one held."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # not on every network file system, where the window is that of an unlink and an open
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_lost(path: Path, own: Mapping[str, object]) -> bool:
    """Another run is named in it. Where it is gone, or cannot be read for now, nobody has taken it."""
    with suppress(OSError):
        holder = _read(path)
        return holder is not None and holder.get("id") != own["id"]
    return False


def _beat(path: Path, own: Mapping[str, object], released: threading.Event) -> None:
    while not released.wait(BEAT_SECONDS):
        if _is_lost(path, own):
            log.error("%s is no longer this run's: another start took it over; this one stops", path)
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: the trainer stops in order
            return
        with suppress(OSError):
            os.utime(path)
