"""What a run ran on: code, versions, machine and command line; and no secrets in anything that is written down."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = (
    *("torch", "lightning", "transformers", "tokenizers", "safetensors", "datasets"),
    *("deepspeed", "peft", "torchmetrics", "omegaconf", "wandb", "numpy"),
)
SECRET = re.compile(r"secret|passw|credential|(keys?|token)(?=$|[._\-\[])", re.IGNORECASE)
"""Names that hide a secret: ``wandb.api_key``, ``HF_TOKEN``; not ``max_new_tokens``, ``tokenizer``."""
HIDDEN = "<hidden>"


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
        "command": without_secrets([Path(sys.argv[0]).name, *map(_hide_argument, sys.argv[1:])]),
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
