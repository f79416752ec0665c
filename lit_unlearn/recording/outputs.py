"""The run directory: who may write into it, files that are whole or absent, and the saved model."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.errors import UserError
from lit_unlearn.models.lora import merged_weights
from lit_unlearn.recording.lock import LOCK, locked

MARKS = ("environment.json", "config.yaml")
"""Files by which a directory is known as a run of ours, in the order in which they are written."""
SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


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
        raise UserError(f"output_dir={output_dir} cannot be made: {error.strerror}") from error
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
    if resume and not _was_started(run_dir):
        raise UserError(f"nothing to resume in output_dir={output_dir}: no run was started there")
    if not resume and run_dir.is_dir() and not (run_dir / LOCK).exists():  # else ``locked`` tells who is there
        _is_taken(run_dir, overwrite)


def check_directory(directory: Path, key: str) -> None:
    """Raises UserError where ``directory``, a value of ``key``, is a file or could not be made or written into."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{key}={directory} is a file; choose another {key}=...")
    above = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{key}={directory} cannot be written to: {above} is not a directory that this user may change")


def _is_taken(run_dir: Path, overwrite: bool) -> bool:
    """Whether there is anything to replace; raises UserError where that was not asked for, or it is not ours."""
    if not _was_started(run_dir) and not _holds_more(run_dir):
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


def _was_started(run_dir: Path) -> bool:
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` that takes its place at the end: readers see the old file or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, obj: object) -> None:
    """Indented, keys sorted; NaN and infinities become null, which JSON can say."""
    write_text(path, json.dumps(_finite(obj), indent=2, sort_keys=True, allow_nan=False) + "\n")


def _finite(obj: object) -> object:
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {key: _finite(value) for key, value in obj.items()}
    return [_finite(value) for value in obj] if isinstance(obj, list | tuple) else obj


def save_model(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save float32 safetensors, config and tokenizer; ``directory`` holds a whole model or none. One rank calls it.

    Args:
        policy: its adapters, where it has some, are folded into what is written.
        tokenizer: saved beside the model.
        directory: replaced when it exists.
    """
    temporary = directory.with_name(f"{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    policy_config = policy.generation_config
    policy.generation_config = _consistent(policy_config)
    try:
        policy.save_pretrained(temporary, state_dict=_float32(merged_weights(policy)))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        policy.generation_config = policy_config
    tokenizer.save_pretrained(temporary)
    config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
    write_json(temporary / "config.json", {**config, "dtype": "float32"})  # else it reloads in the policy's precision
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def _float32(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast once per storage: tied weights stay tied, which is how save_pretrained knows to write them once."""
    cast: dict[tuple[int, torch.Size], Tensor] = {}
    return {
        name: cast.setdefault((tensor.data_ptr(), tensor.shape), tensor.detach().float())
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state_dict.items()
    }


def _consistent(generation_config):
    """Greedy decoding with sampling fields set, as many hub models have it, is refused by save_pretrained."""
    if generation_config is None or generation_config.do_sample:
        return generation_config
    consistent = copy.deepcopy(generation_config)
    for name in SAMPLING_FIELDS:
        setattr(consistent, name, None)
    return consistent
