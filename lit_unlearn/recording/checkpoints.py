"""Checkpoints on disk: written beside their place and made durable before the one before may go."""

from __future__ import annotations

import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from safetensors import SafetensorError

from lit_unlearn.errors import UserError
from lit_unlearn.files import replacing

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)\.ckpt")
_OF_EARLIER_VERSIONS = "last.ckpt"


class DurableFiles(CheckpointIO):
    """Streams a checkpoint to a file beside the one it becomes: no copy in memory, none in ``$TMPDIR``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """``path`` is the whole new checkpoint or what it was before, whatever happens, a power cut included.

        Raises:
            UserError: it cannot be written; nothing is left of the attempt.
        """
        assert storage_options is None
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                write_durably(checkpoint, temporary)
            sync(path.parent)
        except OSError as error:
            refuse_unwritten(path, error.strerror)

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and plain values only, on the CPU: a checkpoint runs no code."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        Path(path).unlink(missing_ok=True)


def refuse_unwritten(path: Path, reason: str | None) -> None:
    """Raises UserError where there is a reason, with the checkpoints that are left."""
    if reason is not None:
        kept = ", ".join(found.name for found in checkpoints(path.parent)) or "none"
        raise UserError(
            f"{path} cannot be written: {reason}; mend that, then go on with resume=true from the checkpoints that are "
            f"whole: {kept}"
        )


def checkpoint_path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}.ckpt"


def checkpoints(directory: Path) -> list[Path]:
    """Newest first; ``last.ckpt``, which earlier versions wrote, comes last."""
    numbered = {int(found[1]): path for path in directory.glob("*.ckpt") if (found := _NAME.fullmatch(path.name))}
    newest_first = [numbered[step] for step in sorted(numbered, reverse=True)]
    return newest_first + [path for path in [directory / _OF_EARLIER_VERSIONS] if path.is_file()]


def last_checkpoint(run_dir: Path) -> Path | None:
    """Where a resumed run goes on: the newest checkpoint that is whole; None where there is none."""
    for path in checkpoints(run_dir / "checkpoints"):
        fault = _fault(path)
        if fault is None:
            return path
        log.warning("%s is not whole (%s): an older checkpoint is used", path, fault)
    return None


def keep_newest(directory: Path, written: Path, number: int) -> None:
    """Remove what is older than ``written`` but for ``number - 1`` of them; what claims to be newer was torn."""
    found = checkpoints(directory)
    for path in found[found.index(written) + number :]:
        remove(path)


def remove(path: Path) -> None:
    """A checkpoint of one file, or of one a rank in a directory; what is being removed is none any more."""
    if path.is_dir():
        gone = path.with_name(f".{path.name}.tmp")
        path.rename(gone)
        shutil.rmtree(gone)
    else:
        path.unlink()


def put_in_place(unfinished: Path, path: Path) -> None:
    """A directory that is written becomes ``path``, for good once this returns."""
    if path.exists():
        remove(path)
    sync(unfinished)
    unfinished.rename(path)
    sync(path.parent)


def why_unwritten(write: Callable[..., object], *arguments: Any, **options: Any) -> str | None:
    """Why a call could not write; None: it could. For a rank that must go on, or the others would wait for it."""
    try:
        write(*arguments, **options)
    except OSError as error:
        return error.strerror or str(error)
    except SafetensorError as error:  # of its own for a full disk
        return str(error)
    return None


def write_durably(checkpoint: Any, path: Path) -> None:
    """``torch.save``, back once it is on the disk."""
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's writer hides what the file said
            cause = error.__cause__ or error.__context__
            raise cause if isinstance(cause, OSError) else error from None
        file.flush()
        os.fsync(file.fileno())


def sync(directory: Path) -> None:
    """A rename is durable once its directory is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fault(path: Path) -> str | None:
    """What is wrong with its files by their own checksums, which torch writes and does not read; None: it is whole."""
    for part in sorted(path.rglob("*.pt")) if path.is_dir() else [path]:
        try:
            with zipfile.ZipFile(part) as file:
                torn = file.testzip()
        except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            return str(error) or type(error).__name__
        if torn is not None:
            return f"the checksum of {torn} is another"
    return None
