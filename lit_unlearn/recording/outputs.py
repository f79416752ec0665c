"""The run directory: who may write into it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from lit_unlearn.errors import UserError
from lit_unlearn.recording.lock import LOCK, locked

MARKS = ("environment.json", "config.yaml")
"""Files by which a directory is known as a run of ours, in the order in which they are written."""


@contextmanager
def open_run(output_dir: str, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Make or find the run directory and hold it for the body; results that are there are never lost silently.

    Other ranks of the run only learn the path.

    Raises:
        UserError: the directory is in use, has nothing to resume, or is not ours to replace.
    """
    run_dir = Path(output_dir)
    if rank_zero_only.rank != 0:  # the first rank may already have written into it
        yield run_dir
        return
    check_run_dir(output_dir, resume, overwrite)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output_dir={output_dir} cannot be made: {error.strerror}; choose another output_dir=..."
        ) from error
    with locked(run_dir):
        if not resume and _is_taken(run_dir, overwrite):
            _clear(run_dir)
        for litter in list(run_dir.rglob(".*.tmp")):  # of a run that was killed: ``replacing`` makes such names
            if litter.is_dir():
                shutil.rmtree(litter)
            else:
                litter.unlink(missing_ok=True)
        yield run_dir


def check_run_dir(output_dir: str, resume: bool, overwrite: bool) -> None:
    """Raises UserError where ``open_run`` would refuse the directory as it is; nothing is made or changed."""
    run_dir = Path(output_dir)
    if rank_zero_only.rank != 0:
        return
    if resume and overwrite:
        raise UserError("resume=true and overwrite=true contradict each other; choose one")
    check_directory(run_dir, "output_dir")
    if resume and not was_started(run_dir):
        raise UserError(f"nothing to resume in output_dir={output_dir}: no run was started there")
    if not resume and run_dir.is_dir() and not (run_dir / LOCK).exists():  # else ``locked`` tells who is there
        _is_taken(run_dir, overwrite)


def check_directory(directory: Path, key: str) -> None:
    """Raises UserError where ``directory``, a value of ``key``, is a file or could not be made or written into."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{key}={directory} is a file; choose another {key}=...")
    above = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    try:
        Path(tempfile.mkdtemp(dir=above)).rmdir()  # what a file system allows is known once it was tried
    except OSError as error:
        told = f"{key}={directory} cannot be written to: {above} is not a directory that this user may change"
        raise UserError(f"{told}; choose another {key}=...") from error


def _is_taken(run_dir: Path, overwrite: bool) -> bool:
    """Whether there is anything to replace; raises UserError where that was not asked for, or it is not ours."""
    if not was_started(run_dir) and not _holds_more(run_dir):
        return False
    if not overwrite:
        raise UserError(
            f"output_dir={run_dir} is not empty; choose another output_dir=..., "
            "or resume=true to go on, or overwrite=true to replace it"
        )
    missing = [name for name in MARKS if not (run_dir / name).is_file()]
    if missing:
        raise UserError(
            f"overwrite=true replaces only earlier runs, and output_dir={run_dir} has no {' and no '.join(missing)}; "
            "delete it yourself or choose another output_dir=..."
        )
    return True


def was_started(run_dir: Path) -> bool:
    """Whether there is a run to go on with."""
    return all((run_dir / name).is_file() for name in MARKS)


def _holds_more(run_dir: Path) -> bool:
    """More than a start leaves that was killed before it had written both marks."""
    left = [child.name for child in run_dir.iterdir() if child.name not in (LOCK, MARKS[0])]
    return any(not (name.startswith(".") and name.endswith(".tmp")) for name in left)


def _clear(run_dir: Path) -> None:
    # The marks go last, so that an interrupted overwrite can be started again.
    for child in sorted(run_dir.iterdir(), key=lambda child: child.name in MARKS):
        if child.name == LOCK:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
