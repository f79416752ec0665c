"""The rules of going on: what a run was started with, and what may not change when it is resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from lit_unlearn.command.typed import typed
from lit_unlearn.config.files import read_yaml
from lit_unlearn.config.schema import Config
from lit_unlearn.errors import UserError
from lit_unlearn.files import write_json, write_text
from lit_unlearn.models.streamed.skeleton import is_skeleton
from lit_unlearn.models.streamed.source import mapped
from lit_unlearn.recording.environment import HIDDEN, environment, without_secrets
from lit_unlearn.recording.outputs import was_started
from lit_unlearn.run.prepare import Study
from lit_unlearn.schemas import CONFIG
from lit_unlearn.strategies.build import chosen
from lit_unlearn.types import Role

Run = TypeVar("Run", bound=Config)
STARTED = "LIT_UNLEARN_STARTED"
"""Environment variable by which a run's day reaches the processes it starts."""
FREE = (
    *("resume", "overwrite", "check", "debug", "output_dir", "logging", "export.push_to_hub", "export.private"),
    *("trainer.log_every_n_steps", "trainer.checkpoint_every_n_epochs", "trainer.keep_checkpoints"),
    *("trainer.checkpoint_every_n_steps", "trainer.checkpoint_every_n_minutes"),
    *("trainer.devices", "trainer.num_nodes", "strategy.timeout_minutes", "strategy.gathering"),
)
"""What may change: it decides neither a step nor a record. All other settings, those to come included, may not.

``trainer.max_epochs`` and ``max_steps`` may not: the learning rate's schedule ends with them, and which epochs are
evaluated depends on them; to train longer, start another run from ``model/``. Nor may ``trainer.num_threads`` or
``precision``, by which sums are rounded. So they are by the number of ranks, ``trainer.devices`` times ``num_nodes``,
which may change all the same, for another machine may be what is free: the rows, beliefs and samples of each step are
the same, losses agree to rounding, and dropout draws anew, as it differs from rank to rank. Under ``zero1``, ``zero2``
and ``zero3``, whose checkpoints are a file a rank, and where an epoch would get another number of steps, the number
may not change: ``check_ranks``.
"""
_CONFIG, _ENVIRONMENT = "config.yaml", "environment.json"
_SAMPLED = 1024
"""Elements of each weight that tell one model from another."""


def settled(config: Run) -> Run:
    """``resume=auto`` as true or false: whether a run was started in ``output_dir``."""
    return replace(config, resume=was_started(Path(config.output_dir))) if config.resume == "auto" else config


@rank_zero_only
def tell_finished(output_dir: str) -> None:
    print(f"{output_dir} is finished: there is nothing to resume; overwrite=true starts it anew")


def dated(config: Run) -> Run:
    """The run's day in ``data.prompt.date``: of its first start, if it is resumed, else today.

    Nothing else asks the clock for what a model reads, so that a run goes on tomorrow with the same tokens.
    """
    if config.data.prompt.date is not None:
        return config
    kept, day = Path(config.output_dir) / "config.yaml", None
    if config.resume and kept.is_file():
        day = OmegaConf.select(OmegaConf.create(read_yaml(kept)), "data.prompt.date")
    if day is None:
        day = os.environ.setdefault(STARTED, date.today().isoformat())
    return replace(config, data=replace(config.data, prompt=replace(config.data.prompt, date=day)))


def check_resumed(run_dir: Path, config: Config) -> None:
    """What a run has cached, sampled and recorded belongs to the settings it was started with.

    Raises:
        UserError: a setting outside ``FREE`` is another now; names each with both values.
    """
    path = run_dir / _CONFIG
    if not path.is_file():
        return  # nothing was started there, which open_run will say
    before = _leaves(typed(type(config), str(path), read_yaml(path)))  # fields newer than the file have their defaults
    now = _leaves(config)
    hidden = json.dumps(HIDDEN)
    changed = [
        f"{key} was {before.get(key, 'not set')} and is {now.get(key, 'not set')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _is_free(key) and hidden not in (before.get(key), now.get(key))
    ]
    ranks = _ranks(before)
    if chosen(config.strategy, config.trainer.world).startswith("zero") and ranks != config.trainer.world:
        raise UserError(
            f"strategy.name={config.strategy.name} keeps a file of each rank, and output_dir={config.output_dir} was "
            f"started with {ranks}, not {config.trainer.world}: set trainer.devices={before['trainer.devices']} "
            f"and trainer.num_nodes={before['trainer.num_nodes']}, or start another run"
        )
    if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise UserError(
            f"resume=true with other settings than output_dir={config.output_dir} was started with: "
            f"{'; '.join(changed[:3])}{more}. Leave the overrides as they were (see {path}) or start another run"
        )


def check_ranks(run_dir: Path, study: Study) -> None:
    """Raises UserError: with today's number of ranks an epoch would have another number of steps than at the start."""
    config, path = study.config, run_dir / _CONFIG
    before, now = _ranks(_leaves(typed(type(config), str(path), read_yaml(path)))), config.trainer.world
    lengths = [(study.rows.get(Role.forget) or next(iter(study.rows.values())), config.data.batch_size)]
    if config.finetune is not None:
        lengths += [(rows, config.finetune.batch_size) for rows in study.finetuning.values()]
    for rest in [len(rows) % batch_size for rows, batch_size in lengths]:
        if rest and (rest >= before) != (rest >= now):
            raise UserError(
                f"output_dir={config.output_dir} was started with {before} ranks; with {now} an epoch would have "
                f"another number of steps, for its last batch has {rest} rows, enough for {min(before, now)} ranks and "
                f"not for {max(before, now)}: set trainer.devices and num_nodes as they were, or start another run"
            )


def _ranks(leaves: Mapping[str, str]) -> int:
    return int(leaves["trainer.devices"]) * int(leaves["trainer.num_nodes"])


def inputs_of(study: Study, policy: PreTrainedModel) -> dict[str, str]:
    """Digests of the rows, the probes and the model that the settings led to; files behind a path may change."""
    rows = ((role.value, row.id, row.prompt, row.answer) for role, rows in study.rows.items() for row in rows)
    probes = (
        (probe.name, row.id, row.prompt, row.answer, choice)
        for probe in study.evaluator.probes
        for row, choice in zip(probe.rows, probe.choices, strict=True)
    )
    weights = (
        (name, tensor.shape, tensor.detach().flatten()[:: max(1, tensor.numel() // _SAMPLED)].float().tolist())
        for name, tensor in (
            mapped(policy, policy.state_dict()) if is_skeleton(policy) else policy.state_dict().items()
        )
    )
    return {"rows": _digest(rows), "probes": _digest(probes), "model": _digest(weights)}


def check_inputs(run_dir: Path, inputs: Mapping[str, str]) -> None:
    """Raises UserError: the same settings lead to other rows, probes or weights than at the first start."""
    path = run_dir / _ENVIRONMENT
    before = _starts(path)[0].get("inputs") if path.is_file() else None
    for name, digest in inputs.items():
        if before is not None and before.get(name, digest) != digest:
            raise UserError(
                f"resume=true, but the {name} are not those that {run_dir} was started with, though the settings are: "
                "a file behind them has changed; put it back or start another run"
            )


@rank_zero_only
def write_start(run_dir: Path, config: Config, inputs: Mapping[str, str] | None = None) -> None:
    """Of the first start what was asked for; of each where, when and on what it ran."""
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    start = environment() | {"started": started} | ({"inputs": dict(inputs)} if inputs else {})
    path = run_dir / _ENVIRONMENT
    resumed = (run_dir / _CONFIG).is_file()
    write_json(path, {"starts": [*(_starts(path) if resumed else []), start]})
    if not resumed:
        settings = without_secrets({"schema": CONFIG} | asdict(replace(config, resume=False, overwrite=False)))
        write_text(run_dir / _CONFIG, OmegaConf.to_yaml(settings))


def _starts(path: Path) -> list[dict[str, Any]]:
    """Earlier versions wrote one start, bare."""
    written = json.loads(path.read_text(encoding="utf-8"))
    return written.get("starts", [written])


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _leaves(config: Config) -> dict[str, str]:
    """Full key -> value as YAML would read it back; of a secret, that there is one."""

    def walk(prefix: str, node: object) -> Iterator[tuple[str, str]]:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            yield prefix, json.dumps(list(node) if isinstance(node, tuple) else node)

    return dict(walk("", without_secrets(asdict(config))))


def _digest(parts: Iterator[tuple]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
