"""The run directory: who may write into it, files that are whole or absent, and the saved model."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.errors import UserError
from lit_unlearn.models.files import in_dtype
from lit_unlearn.models.lora import merged_weights, save_adapters
from lit_unlearn.models.settings import ExportForm
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
        raise UserError(
            f"output_dir={output_dir} cannot be made: {error.strerror}; choose another output_dir=..."
        ) from error
    with locked(run_dir):
        if not resume and _is_taken(run_dir, overwrite):
            _clear(run_dir)
        for litter in run_dir.rglob(".*.tmp"):  # of a run that was killed: ``replacing`` makes such names
            litter.unlink()
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
    try:
        Path(tempfile.mkdtemp(dir=above)).rmdir()  # what a file system allows is known once it was tried
    except OSError as error:
        raise UserError(
            f"{key}={directory} cannot be written to: {above} is not a directory that this user may change; choose "
            f"another {key}=..."
        ) from error


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


@dataclass(frozen=True)
class Export:
    """How a model is written."""

    dtype: torch.dtype = torch.float32
    form: ExportForm = "merged"
    stops: tuple[int, ...] = ()
    """Tokens by which its answers end, beside those at which its own settings stop generation."""


def save_model(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, export: Export | None = None
) -> None:
    """Save safetensors, config and tokenizer; ``directory`` holds a whole model or none. One rank calls it.

    Args:
        policy: its adapters, where it has some, are folded into what is written, or all that is.
        tokenizer: saved beside the model.
        directory: replaced when it exists.
        export: a float32 model unless it says otherwise.
    """
    temporary = directory.with_name(f"{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    export = export or Export()
    generation = _generation(policy.generation_config, export.stops)
    try:
        if export.form == "adapter":
            save_adapters(policy, temporary, export.dtype)
            if generation is not None:
                generation.save_pretrained(temporary)
        else:
            _save_merged(policy, temporary, generation, export.dtype)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def _save_merged(
    policy: PreTrainedModel, directory: Path, generation: GenerationConfig | None, dtype: torch.dtype
) -> None:
    own = policy.generation_config
    policy.generation_config = generation  # type: ignore[assignment]
    try:
        policy.save_pretrained(directory, state_dict=in_dtype(merged_weights(policy), dtype))
    finally:
        policy.generation_config = own
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    named = str(dtype).removeprefix("torch.")
    write_json(directory / "config.json", {**config, "dtype": named})  # else it reloads in the policy's precision


def _generation(own: GenerationConfig | None, stops: tuple[int, ...]) -> GenerationConfig | None:
    """A model's own settings of generation, which stop at ``stops`` too, as they can be saved.

    Greedy decoding with sampling fields set, as many hub models have it, is refused by save_pretrained.
    """
    if own is None:
        return None
    saved = copy.deepcopy(own)
    named = saved.eos_token_id if isinstance(saved.eos_token_id, list) else [saved.eos_token_id]
    ends = list(dict.fromkeys([*(id for id in named if id is not None), *stops]))
    if stops:
        saved.eos_token_id = ends if len(ends) > 1 else ends[0]
    for name in () if saved.do_sample else SAMPLING_FIELDS:
        setattr(saved, name, None)
    return saved
