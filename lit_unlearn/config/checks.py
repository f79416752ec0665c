"""What spans several owners of the configuration, checked before a model or a row is read."""

from __future__ import annotations

import os

from lit_unlearn.benchmarks import BENCHMARKS
from lit_unlearn.config.build import build
from lit_unlearn.config.schema import Config
from lit_unlearn.config.terms import build_terms
from lit_unlearn.errors import UserError
from lit_unlearn.strategies.settings import CUT
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import Role, union_of_needs

WANDB_MODES = ("online", "offline", "disabled", "dryrun", "run", "shared")
"""Values of WANDB_MODE."""
_FORGET_PROMPTS = (Role.forget, Role.belief, Role.alternate)
"""Roles whose rows answer the forget questions."""


def check(config: Config) -> None:
    """Raises UserError for terms that cannot be built, and for settings that do not go together."""
    build(config.data.benchmark, BENCHMARKS, "data.benchmark")
    terms = build_terms(config)
    if not terms:
        raise UserError("terms is empty: name at least one, e.g. terms.forget.objective.name=npo")
    if not any(role in term.objective.needs.policy for term in terms.values() for role in _FORGET_PROMPTS):
        raise UserError("no term reads the forget rows, so nothing would be forgotten; add one, or use finetune")
    if not any(term.weight for term in terms.values()):
        raise UserError("the weight of every term is 0, so nothing would be learnt; give one a weight, e.g. 1.0")
    if config.data.alternates != "refusals" and Role.alternate not in union_of_needs(terms).policy:
        raise UserError("data.alternates is set, but no term has role: alternate; remove it or add such a term")
    sizes = [config.data.batch_size] + ([config.finetune.batch_size] if config.finetune else [])
    if min(sizes) < config.trainer.world:
        raise UserError(
            f"trainer.num_nodes={config.trainer.num_nodes} times trainer.devices={config.trainer.devices} cannot share "
            f"a batch of {min(sizes)} rows; raise "
            "data.batch_size and finetune.batch_size, or use fewer devices"
        )
    if config.beliefs is not None and Role.belief not in union_of_needs(terms).policy:
        raise UserError("beliefs.* is set, but no term has role: belief; remove it or add such a term")
    _check_model(config)
    if config.resume == "auto" and config.overwrite:
        raise UserError("resume=auto and overwrite=true contradict each other; choose one")
    _check_strategy(config)
    _check_optimizer("optim", config.optim, config)
    if config.finetune is not None:
        _check_optimizer("finetune.optim", config.finetune.optim, config)
        if config.finetune.optim.trainable is not None:
            raise UserError("finetune trains all weights: set finetune.optim.trainable=null")


def _check_model(config: Config) -> None:
    """Raises UserError where adapters, export or recomputation do not go with the rest."""
    if config.model.lora is not None and config.optim.trainable is not None:
        raise UserError("model.lora freezes all weights but its adapters: set optim.trainable=null, or model.lora=null")
    if config.model.lora is not None and config.model.lora.base == "nf4":
        _check_nf4(config)
    made = config.model.path is None and config.model.name == "tiny"
    if config.export.push_to_hub is not None and made and not config.uploads_text:
        raise UserError(
            f"privacy={config.privacy} keeps questions and answers on this machine, and the vocabulary of "
            "model.name=tiny is made of their words: set export.push_to_hub=null, or take another model"
        )
    if config.export.form == "adapter" and config.model.lora is None:
        raise UserError("export.form=adapter needs adapters: set model.lora, e.g. {rank: 16}, or export.form=merged")
    if config.model.gradient_checkpointing == "selective":
        for where, several in (
            ("logging.gradient_shares_every_n_steps", config.logging.gradient_shares_every_n_steps > 0),
            ("schedules.gradient_rectification", "gradient_rectification" in config.schedules),
        ):
            if several:
                raise UserError(
                    f"{where} goes back through a step more than once, which model.gradient_checkpointing=selective "
                    "does not allow: set it to none or full"
                )


def check_training(config: Config) -> None:
    """Raises UserError where there is no model to start from, or none can be made; evaluate makes none."""
    if config.finetune is not None:
        check_finetune(config)
        return
    if config.model.path is None and config.model.name == "hub":
        raise UserError("model.path is not set; give a directory or a Hub id, or choose model.name=tiny or smollm2")
    _check_wandb(config)


def check_finetune(config: Config) -> None:
    """Raises UserError where there is no model to start from, or two retain models are named."""
    if config.finetune is None:
        raise UserError(
            "this conf has no finetune section: its model.path is a finished target model. Add finetune={...} and set "
            "model.path to the model that has not seen the data"
        )
    if config.model.name == "hub" and config.model.path is None:
        raise UserError("finetune needs a model to start from: set model.path, or model.name=tiny or smollm2")
    evaluation = config.evaluation
    if evaluation.retain_model or evaluation.retain_records or evaluation.original_records:
        raise UserError(
            "finetune makes the original and the retain model itself: remove evaluation.retain_model, retain_records "
            "and original_records, or set finetune=null and model.path to a finished target model"
        )
    _check_wandb(config)


def check_evaluation(config: Config) -> None:
    """Raises UserError where there is no model to evaluate."""
    if config.resume:
        raise UserError(f"resume={_told(config)} has no meaning for evaluate; start again with overwrite=true")
    check_model_path(config)


def check_alternates(config: Config) -> None:
    """Raises UserError where there is no model to ask, or its answers may not be written."""
    if config.check:
        raise UserError("check=true has no meaning for alternates; try num=1 in another output_dir")
    if config.resume:
        raise UserError(f"resume={_told(config)} has no meaning for alternates; start again with overwrite=true")
    if not config.keeps_text:
        raise UserError(
            "privacy=hashed writes no answers, and alternates are answers to the forget questions: set privacy=local"
        )
    check_model_path(config)


def _told(config: Config) -> str:
    return str(config.resume).lower()


def check_model_path(config: Config) -> None:
    if config.model.path is None:
        raise UserError("model.path is not set: give the directory or the Hub id of the original model")


def _check_wandb(config: Config) -> None:
    """What W&B itself reads of the environment, where ``logging.mode`` leaves it the choice."""
    mode = os.environ.get("WANDB_MODE")
    if config.logging.mode == "auto" and mode and mode not in WANDB_MODES:
        raise UserError(
            f"WANDB_MODE={mode} in the environment is unknown; set it to {', '.join(WANDB_MODES)}, or unset it"
        )


def _check_strategy(config: Config) -> None:
    """What a strategy asks of the processes, the optimizer and whatever looks at gradients."""
    name, world = config.strategy.name, config.trainer.world
    if name == "single" and world > 1:
        raise UserError(
            f"strategy.name=single is one process, but trainer.devices x trainer.num_nodes is {world}: set "
            "strategy.name=ddp, zero2, zero3 or fsdp2, or trainer.devices=1"
        )
    watchers = {
        "schedules.gradient_rectification": "gradient_rectification" in config.schedules,
        "logging.gradient_shares_every_n_steps": config.logging.gradient_shares_every_n_steps > 0,
    }
    for watcher in [key for key, there in watchers.items() if there]:
        if name in CUT:
            raise UserError(
                f"{watcher} compares whole gradients, which strategy.name={name} cuts in pieces: set "
                f"strategy.name=ddp, or leave {watcher.split('.')[-1]} out"
            )
        if config.data.micro_batch_size is not None:
            raise UserError(
                f"{watcher} goes back through a whole step, which data.micro_batch_size cuts in parts: set it to null"
            )
    if name in CUT and config.data.micro_batch_size == "auto":
        raise UserError(
            f"data.micro_batch_size=auto is tried by each process alone, and strategy.name={name} cuts in pieces what "
            "all of them share: give a number, by the memory that check=true plans, or set strategy.name=ddp"
        )
    if name in CUT and config.model.compile:
        raise UserError(f"model.compile has not been tried with strategy.name={name}: set model.compile=false")


def _check_nf4(config: Config) -> None:
    """What the four bits are not ready for."""
    if config.strategy.name in CUT:
        raise UserError(
            f"model.lora.base=nf4 keeps weights four bits wide, which strategy.name={config.strategy.name} cannot hold "
            "in pieces: set strategy.name=ddp, or model.lora.base=full"
        )
    if config.model.compile:
        raise UserError("model.compile has not been tried with model.lora.base=nf4: set model.compile=false")


def _check_optimizer(where: str, optim: OptimConfig, config: Config) -> None:
    """What some optimizers ask of the trainer, the schedules and the model."""
    trainer, chosen = config.trainer, f"{where}.name={optim.name}"
    if optim.name != "adamw" and config.strategy.name in CUT:
        raise UserError(
            f"{chosen} keeps states of its own, which strategy.name={config.strategy.name} would have to cut: set "
            f"{where}.name=adamw, or strategy.name=ddp"
        )
    if optim.name == "adamw_8bit" and trainer.precision != "bf16-mixed":
        raise UserError(f"{chosen} holds bf16 weights: set trainer.precision=bf16-mixed, or another {where}.name")
    if optim.name != "adamw_in_backward":
        return
    if trainer.gradient_clip is not None:
        raise UserError(f"{chosen} never sees the whole gradient: set trainer.gradient_clip=null")
    if trainer.world != 1:
        raise UserError(f"{chosen} moves weights before ranks could meet: set trainer.devices=1, or {where}.name=adamw")
    if config.data.micro_batch_size is not None:
        raise UserError(
            f"{chosen} moves weights within each backward: set data.micro_batch_size=null, or {where}.name=adamw"
        )
    if where == "optim" and "gradient_rectification" in config.schedules:
        raise UserError(f"{chosen} keeps no gradient for schedules.gradient_rectification: set {where}.name=adamw")
    if where == "optim" and config.logging.gradient_shares_every_n_steps:
        raise UserError(f"{chosen} keeps no gradient for logging.gradient_shares_every_n_steps: set {where}.name=adamw")
