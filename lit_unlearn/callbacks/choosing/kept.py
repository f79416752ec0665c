"""Trained weights on disk, a directory a step, whole or absent; no more than one weight is whole in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from lightning.pytorch.strategies import Strategy
from safetensors.torch import load_file, save_file
from torch import nn

from lit_unlearn.errors import UserError
from lit_unlearn.parallel import broadcast_object, rank
from lit_unlearn.recording.checkpoints import put_in_place, remove, why_unwritten
from lit_unlearn.strategies.whole import assign, exact


class KeptWeights:
    """Those that are trained: the others are as they were at the start. Adapters alone, where there are some."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def has(self, step: int) -> bool:
        return self._path(step).is_dir()

    def write(self, strategy: Strategy, model: nn.Module, step: int) -> None:
        """Every rank calls it, the first one writes; back once the weights are on the disk.

        Raises:
            UserError: on every rank, where they cannot be written; what was kept before is still there.
        """
        path, fault = self._path(step), None
        unfinished = path.with_name(f".{path.name}.new.tmp")
        if rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            fault = why_unwritten(unfinished.mkdir, parents=True)
        for number, (name, weight) in enumerate(_trained(model)):
            whole = exact(strategy, weight)
            if rank() == 0 and fault is None:  # else go on, or the others would wait
                tensors = {name: whole.to("cpu").contiguous()}
                fault = why_unwritten(_write, _file(unfinished, number), tensors)
        if rank() == 0 and fault is None:
            fault = why_unwritten(put_in_place, unfinished, path)
        if (fault := broadcast_object(fault)) is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise UserError(f"{path} cannot be written: {fault}; mend that, then go on with resume=true")

    def put_back(self, strategy: Strategy, model: nn.Module, step: int) -> None:
        """Give the model the weights of a step; every rank calls it and reads the files."""
        for number, (name, weight) in enumerate(_trained(model)):
            assign(strategy, weight, load_file(_file(self._path(step), number))[name])

    def prune(self, steps: Collection[int]) -> None:
        """Remove all but those of ``steps``."""
        if rank() == 0 and self.directory.is_dir():
            for path in set(self.directory.glob("step-*")) - {self._path(step) for step in steps}:
                remove(path)

    def clear(self) -> None:
        self.prune(())
        if rank() == 0 and self.directory.is_dir():
            self.directory.rmdir()

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def _file(directory: Path, number: int) -> Path:
    return directory / f"{number:05d}.safetensors"


def _write(path: Path, tensors: dict) -> None:
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
