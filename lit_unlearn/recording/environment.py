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
import yaml

PACKAGES = (
    *("torch", "lightning", "transformers", "tokenizers", "safetensors", "datasets"),
    *("deepspeed", "peft", "torchmetrics", "omegaconf", "wandb", "numpy"),
)
SECRET = re.compile(r"secret|passw|credential|(keys?|token)(?=$|[._\-\[])", re.IGNORECASE)
"""Names that hide a secret: ``wandb.api_key``, ``HF_TOKEN``; not ``max_new_tokens``, ``tokenizer``."""
_NAMED = re.compile(r"(secret|passw|credential|keys?|token)\w*[\"']?\s*[:=]", re.IGNORECASE)
_NEVER_A_NUMBER_OF = re.compile(r"secret|passw|credential|api[_-]?key", re.IGNORECASE)
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
    """The value of an argument is YAML, so a secret may sit in it at any depth."""
    key, separator, text = argument.partition("=")
    if not separator:
        return argument
    if SECRET.search(key):
        return f"{key}={HIDDEN}"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return f"{key}={HIDDEN}" if _NAMED.search(text) else argument
    if isinstance(value, str):  # in quotes, as a shell may want it
        value = _written_tree(value)
    clean = without_secrets(value)
    if clean == value:
        return argument
    return f"{key}={yaml.safe_dump(clean, default_flow_style=True, width=10**6, sort_keys=False).strip()}"


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
            return {k: HIDDEN if SECRET.search(str(k)) and _holds(str(k), v) else clean(v) for k, v in node.items()}
        if isinstance(node, list | tuple):
            return [clean(value) for value in node]
        if not isinstance(node, str):
            return node
        inner = _written_tree(node)
        hidden = any(secret in node for secret in secrets) or (inner is not None and clean(inner) != inner)
        return HIDDEN if hidden else node

    return clean(obj)


def _written_tree(text: str) -> dict | list | None:
    """What a text says that is a mapping or a list in YAML's or JSON's braces."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return value if isinstance(value, dict | list) else None


def _holds(name: str, value: object) -> bool:
    """An empty setting is no secret; nor is a number, as of ``token`` or ``keys``, unless its name leaves no doubt."""
    if isinstance(value, int | float):
        return not isinstance(value, bool | float) and _NEVER_A_NUMBER_OF.search(name) is not None
    return value is not None
