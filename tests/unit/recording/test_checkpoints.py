"""A checkpoint is whole or what it was before; a torn one is told and passed over; nothing takes its size again."""

from __future__ import annotations

import logging
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lit_unlearn.errors import UserError
from lit_unlearn.recording.checkpoints import DurableFiles, checkpoint_path, checkpoints, keep_newest, last_checkpoint


def write(run_dir: Path, *steps: int) -> list[Path]:
    paths = [checkpoint_path(run_dir / "checkpoints", step) for step in steps]
    for path, step in zip(paths, steps, strict=True):
        DurableFiles().save_checkpoint({"global_step": step, "weights": torch.full((5000,), float(step))}, path)
    return paths


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One bit in the middle of the weights, which torch itself would load."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other(path: Path) -> None:
    path.write_text("<html>quota exceeded</html>")


def test_the_newest_is_found_by_step_and_an_earlier_version_s_comes_last(tmp_path: Path):
    assert last_checkpoint(tmp_path) is None
    four, twelve, eight = write(tmp_path, 4, 12, 8)
    old = tmp_path / "checkpoints" / "last.ckpt"
    torch.save({"global_step": 2}, old)
    assert checkpoints(tmp_path / "checkpoints") == [twelve, eight, four, old]
    assert last_checkpoint(tmp_path) == twelve
    for path in (four, eight, twelve):
        path.unlink()
    assert last_checkpoint(tmp_path) == old
    assert DurableFiles().load_checkpoint(old) == {"global_step": 2}


@pytest.mark.parametrize("tear", [cut, empty, flip, other])
def test_a_torn_file_is_one_line_and_the_older_one_is_used(tmp_path: Path, tear, caplog: pytest.LogCaptureFixture):
    older, newer = write(tmp_path, 4, 8)
    tear(newer)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path) == older
    assert len(caplog.messages) == 1
    assert str(newer) in caplog.text
    assert "\n" not in caplog.messages[0]
    tear(older)
    assert last_checkpoint(tmp_path) is None


def test_only_older_ones_go_and_only_as_many_as_asked(tmp_path: Path):
    directory = tmp_path / "checkpoints"
    two, four, six, torn = write(tmp_path, 2, 4, 6, 99)
    torch.save({}, directory / "last.ckpt")
    keep_newest(directory, six, 2)
    assert checkpoints(directory) == [torn, six, four]
    keep_newest(directory, six, 1)
    assert checkpoints(directory) == [torn, six]
    assert not two.exists()


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def test_a_disk_that_is_full_is_one_line_and_keeps_what_was_there(tmp_path: Path):
    """``No space left on device`` and ``Disk quota exceeded`` reach us as this does: a write that fails half-way."""
    one, two = write(tmp_path, 1, 2)
    weights = {name: torch.ones(1_000_000) for name in "abcdefgh"}
    with limited(resource.RLIMIT_FSIZE, 10_000_000), pytest.raises(UserError) as told:
        DurableFiles().save_checkpoint(weights, two)
    assert str(told.value).startswith(f"{two} cannot be written: File too large;")
    assert "resume=true" in str(told.value)
    assert "step-00000002.ckpt, step-00000001.ckpt" in str(told.value)
    assert "\n" not in str(told.value)
    assert DurableFiles().load_checkpoint(two)["global_step"] == 2
    assert sorted(two.parent.iterdir()) == [one, two]


def test_saving_takes_no_second_copy_and_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    checkpoint = {"weights": torch.ones(80_000_000)}  # 320 MB
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with limited(resource.RLIMIT_AS, size + 150_000_000):
        DurableFiles().save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").unlink()


def test_a_checkpoint_runs_no_code(tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"harm": Harm()}, tmp_path / "a.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        DurableFiles().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert not (tmp_path / "harm").exists()
