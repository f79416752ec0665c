"""The run directory: who may write into it, whole files only, what the run ran on, and the saved model."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.errors import UserError

MARKS = ("config.yaml", "environment.json")
"""Files by which a directory is known as a run of ours."""
PACKAGES = (
    "torch lightning transformers tokenizers safetensors datasets deepspeed peft torchmetrics omegaconf wandb numpy"
).split()
SECRET = re.compile(r"secret|passw|credential|(key|token)(?=$|[._\-\[])", re.IGNORECASE)
"""Names that hide a secret: ``wandb.api_key``, ``HF_TOKEN``; not ``max_new_tokens``, ``tokenizer``."""
HIDDEN = "<hidden>"
SAMPLING_FIELDS = "temperature top_p top_k min_p top_h typical_p epsilon_cutoff eta_cutoff".split()


def open_run(output_dir: str, resume: bool, overwrite: bool) -> Path:
    """Make or find the run directory; results that are there are never lost silently. Other ranks only learn the path.

    Raises:
        UserError: the directory is in use, has nothing to resume, or is not ours to replace.
    """
    run_dir = Path(output_dir)
    if rank_zero_only.rank != 0:  # the first rank may already have written into it
        return run_dir
    if resume and overwrite:
        raise UserError("resume=true and overwrite=true contradict each other; choose one")
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"output_dir={output_dir} is a file; choose another output_dir=...")
    if resume:
        if not (run_dir / "checkpoints" / "last.ckpt").exists():
            raise UserError(f"nothing to resume in output_dir={output_dir}: checkpoints/last.ckpt is not there")
    elif run_dir.is_dir() and any(run_dir.iterdir()):
        if not overwrite:
            raise UserError(
                f"output_dir={output_dir} is not empty; choose another output_dir=..., "
                "or resume=true to go on, or overwrite=true to replace it"
            )
        _clear(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def _clear(run_dir: Path) -> None:
    missing = [name for name in MARKS if not (run_dir / name).is_file()]
    if missing:
        raise UserError(
            f"overwrite=true replaces only earlier runs, and output_dir={run_dir} has no {' and no '.join(missing)}; "
            "delete it yourself or choose another output_dir=..."
        )
    # The marks go last, so that an interrupted overwrite can be started again.
    for child in sorted(run_dir.iterdir(), key=lambda child: child.name in MARKS):
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


def without_secrets(obj: object) -> object:
    """Copy a tree of settings with every secret hidden: by its key, or by its text being one of the environment's."""
    secrets = [value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= 8]

    def clean(node: object) -> object:
        if isinstance(node, Mapping):
            return {k: HIDDEN if SECRET.search(str(k)) and _holds(v) else clean(v) for k, v in node.items()}
        if isinstance(node, list | tuple):
            return [clean(value) for value in node]
        return HIDDEN if isinstance(node, str) and any(secret in node for secret in secrets) else node

    return clean(obj)


def _holds(value: object) -> bool:
    """A number or an empty setting is no secret."""
    return value is not None and not isinstance(value, bool | int | float)


def environment() -> dict[str, object]:
    """What the run runs on: code, versions, machine and command line, without secrets."""
    return {
        "git": _git(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "count": os.cpu_count()},
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [
            {"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)}
            for gpu in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ],
        "command": without_secrets([_hide_argument(argument) for argument in sys.argv]),
    }


def _hide_argument(argument: str) -> str:
    key, separator, _ = argument.partition("=")
    return f"{key}={HIDDEN}" if separator and SECRET.search(key) else argument


def _git() -> dict[str, object] | None:
    """Commit of the checkout this file is tracked in; None for an installed package."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def save_model(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Save float32 safetensors, config and tokenizer; ``directory`` holds a whole model or none. One rank calls it.

    Args:
        policy: a plain model, adapters merged.
        tokenizer: saved beside the model.
        directory: replaced when it exists.
        state_dict: the gathered weights when the policy holds only shards of them.
    """
    temporary = directory.with_name(f"{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    policy_config = policy.generation_config
    policy.generation_config = _consistent(policy_config)
    try:
        policy.save_pretrained(temporary, state_dict=_float32(policy.state_dict() if state_dict is None else state_dict))
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
