"""The whole configuration of a run: YAML and overrides in, plain typed objects out; it alone knows all owners."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_unlearn.callbacks.settings import BeliefConfig, SqueezeConfig
from lit_unlearn.config.files import conf_names, drop_fields_of_other_name, find_conf, read_conf
from lit_unlearn.data.settings import DataConfig
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.settings import EvaluationConfig
from lit_unlearn.models.settings import ModelConfig
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.recording.settings import LoggingConfig
from lit_unlearn.training.settings import OptimConfig, TrainerConfig
from lit_unlearn.types import Role, Term, Terms, union_of_needs

T = TypeVar("T")
_FORGET_PROMPTS = (Role.forget, Role.belief, Role.alternate)
"""Roles whose rows answer the forget questions."""


@dataclass
class TermConfig:
    """One named part of the loss."""

    objective: dict[str, Any]
    """``name`` of an objective and its fields; ``package.module:Class`` loads one from outside."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"the weight of a term must be a finite number, not {self.weight}")


@dataclass
class FinetuneConfig:
    """Make the target model (full set) and the retain model (retain set) first; null where ``model.path`` is one."""

    max_epochs: int = 5
    batch_size: int = 32
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    terms: dict[str, TermConfig | None] = field(default_factory=dict)
    """Named terms of the loss; ``terms.NAME=null`` leaves one out."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    beliefs: BeliefConfig | None = None
    """Null: the defaults, where a term reads beliefs."""
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Callbacks that move weights or gradients during training: name in ``callbacks.SCHEDULES`` -> its fields."""
    squeeze: SqueezeConfig | None = None
    """Null: no squeezing probe."""
    finetune: FinetuneConfig | None = None
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    output_dir: str = "???"
    """Run directory; runs/<conf name> unless set."""
    seed: int = 0
    resume: bool = False
    """Go on in ``output_dir``: from its last checkpoint, with the models it has finetuned and the records it has."""
    overwrite: bool = False
    """Replace an earlier run in ``output_dir``."""
    debug: bool = False
    """Show tracebacks of user errors."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be from 0 to {2**32 - 1}")


def load(argv: list[str], run_name: str = "{conf}") -> Config:
    """``conf=NAME`` or ``conf=PATH``, then ``key=value`` overrides; ``run_name`` is the run directory's by default.

    Raises:
        UserError: an unknown conf, key, name or value, with the full key and the valid choices.
    """
    pairs = dict(_split(argument) for argument in argv)
    if "conf" not in pairs:
        raise UserError(f"conf=NAME is missing; choose one of {', '.join(conf_names())}, or conf=PATH of a YAML file")
    path = find_conf(pairs.pop("conf"))
    try:
        written = {"output_dir": f"runs/{run_name.format(conf=path.stem)}"} | read_conf(path)
        overrides = OmegaConf.from_dotlist([f"{key}={value}" for key, value in pairs.items()])
        drop_fields_of_other_name(written, cast(dict[str, Any], OmegaConf.to_container(overrides)))
        merged = OmegaConf.merge(OmegaConf.structured(Config), written, overrides)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, path)) from error
    except yaml.YAMLError as error:
        raise UserError(f"an override is not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError) as error:  # a field's own check in __post_init__
        raise UserError(f"{path}: {error}") from error
    assert isinstance(config, Config)
    _check(config)
    return config


def build_terms(config: Config) -> Terms:
    """The objects behind ``config.terms``."""
    return _terms({name: term for name, term in config.terms.items() if term is not None})


def terms_from(written: Mapping[str, Mapping[str, Any] | None]) -> Terms:
    """The objects behind a ``terms`` mapping as YAML writes it; a null leaves a term out."""
    kinds, present = {"term": TermConfig}, {name: node for name, node in written.items() if node is not None}
    if not present:
        raise UserError("terms is empty: name at least one, e.g. {'forget': {'objective': {'name': 'npo'}}}")
    return _terms({name: build({"name": "term", **node}, kinds, f"terms.{name}") for name, node in present.items()})


def _terms(nodes: Mapping[str, TermConfig]) -> Terms:
    return {
        name: Term(node.weight, build(node.objective, OBJECTIVES, f"terms.{name}.objective"))
        for name, node in nodes.items()
    }


def build(node: dict[str, Any], table: dict[str, type[T]], where: str) -> T:
    """``{name: npo, beta: 0.1}`` -> ``NPO(beta=0.1)``, from a table of contents or from ``package.module:Class``."""
    fields = dict(node)
    name = fields.pop("name", None)
    kind = table.get(name) if name is not None else None
    if kind is None and isinstance(name, str) and ":" in name:
        kind = _outside(name, where)
    if kind is None:
        raise UserError(
            f"{where}.name={name!r} is unknown; choose one of {', '.join(sorted(table))} or package.module:Class"
        )
    try:
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), fields))
    except OmegaConfBaseException as error:
        raise UserError(f"{where} ({name}): {_first_line(error)}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{where} ({name}): {error}") from error
    return cast(T, built)


def _check(config: Config) -> None:
    """What spans several owners."""
    terms = build_terms(config)
    if not terms:
        raise UserError("terms is empty: name at least one, e.g. terms.forget.objective.name=npo")
    if not any(role in term.objective.needs.policy for term in terms.values() for role in _FORGET_PROMPTS):
        raise UserError("no term reads the forget rows, so nothing would be forgotten; add one, or use finetune")
    if config.data.alternates != "refusals" and Role.alternate not in union_of_needs(terms).policy:
        raise UserError("data.alternates is set, but no term has role: alternate; remove it or add such a term")
    sizes = [config.data.batch_size] + ([config.finetune.batch_size] if config.finetune else [])
    if min(sizes) < config.trainer.devices:
        raise UserError(
            f"trainer.devices={config.trainer.devices} cannot share a batch of {min(sizes)} rows; raise "
            "data.batch_size and finetune.batch_size, or use fewer devices"
        )
    if config.beliefs is not None and Role.belief not in union_of_needs(terms).policy:
        raise UserError("beliefs.* is set, but no term has role: belief; remove it or add such a term")
    if config.model.lora is not None and config.optim.trainable is not None:
        raise UserError("model.lora freezes all weights but its adapters: set optim.trainable=null, or model.lora=null")
    _check_optimizer("optim", config.optim, config)
    if config.finetune is not None:
        _check_optimizer("finetune.optim", config.finetune.optim, config)


def _check_optimizer(where: str, optim: OptimConfig, config: Config) -> None:
    """What some optimizers ask of the trainer, the schedules and the model."""
    trainer, chosen = config.trainer, f"{where}.name={optim.name}"
    if optim.name == "adamw_8bit" and trainer.precision != "bf16-mixed":
        raise UserError(f"{chosen} holds bf16 weights: set trainer.precision=bf16-mixed, or another {where}.name")
    if optim.name != "adamw_in_backward":
        return
    if trainer.gradient_clip is not None:
        raise UserError(f"{chosen} never sees the whole gradient: set trainer.gradient_clip=null")
    if trainer.devices != 1:
        raise UserError(f"{chosen} moves weights before ranks could meet: set trainer.devices=1, or {where}.name=adamw")
    if where == "optim" and "gradient_rectification" in config.schedules:
        raise UserError(f"{chosen} keeps no gradient for schedules.gradient_rectification: set {where}.name=adamw")


def _split(argument: str) -> tuple[str, str]:
    key, sign, value = argument.partition("=")
    if not sign or not key or key.startswith("-"):
        raise UserError(f"cannot read {argument!r}: arguments are conf=NAME and key=value, e.g. optim.lr=2e-5")
    return key, value


def _outside(name: str, where: str) -> type:
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except Exception as error:  # the user's own file: whatever is wrong with it is theirs to mend
        raise UserError(f"{where}.name={name}: {type(error).__name__}: {error}") from error
    if not is_dataclass(kind) or not isinstance(kind, type):
        raise UserError(f"{where}.name={name} must be a dataclass, whose fields are its settings")
    return kind


def _explain(error: OmegaConfBaseException, path: Path) -> str:
    key = getattr(error, "full_key", None)
    return f"{path}: {key}: {_first_line(error)}" if key else f"{path}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
