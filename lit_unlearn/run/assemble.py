"""Puts together what a fit needs: module, data, callbacks."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import lightning as L
import torch
from transformers import PreTrainedModel

from lit_unlearn.callbacks.belief_sampler import BeliefSampler
from lit_unlearn.callbacks.choosing.choice import Choice
from lit_unlearn.callbacks.choosing.disruption import KL_TO_START, Disruption
from lit_unlearn.callbacks.evaluation import Evaluation
from lit_unlearn.callbacks.gradient_shares import GradientShares
from lit_unlearn.callbacks.progress import Progress
from lit_unlearn.callbacks.reference_cache import ReferenceCache
from lit_unlearn.callbacks.settings import BeliefConfig
from lit_unlearn.callbacks.squeeze_probe import SqueezeProbe
from lit_unlearn.callbacks.throughput import Throughput
from lit_unlearn.config.schema import Config
from lit_unlearn.data.beliefs import BeliefStore
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.engine.trial import follow
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Records
from lit_unlearn.evaluation.choice.rule import DISRUPTION
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.memory.size import size_of
from lit_unlearn.models.adapters.lora import add_adapters
from lit_unlearn.models.adapters.nf4 import quantize_base
from lit_unlearn.models.files import stored_dtype
from lit_unlearn.models.load import load_pretrained
from lit_unlearn.models.rounding import round_weights
from lit_unlearn.run.early.trial import MicroBatches
from lit_unlearn.run.plan import UNLEARNING
from lit_unlearn.run.prepare import Study, build_encoder
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.optim import freeze_others
from lit_unlearn.training.optimizers import hold_weights
from lit_unlearn.training.trainer import release
from lit_unlearn.types import Role, union_of_needs

log = logging.getLogger(__name__)
_SHAPES = 256
"""Packed tokens are filled up to multiples of this under ``model.compile``."""


def assemble(
    study: Study,
    policy: PreTrainedModel,
    retain_model: str | None,
    run_dir: Path,
    kind: type[UnlearnModule] = UnlearnModule,
) -> tuple[UnlearnModule, UnlearnData, Sequence[L.Callback], Evaluation]:
    """Everything a fit needs; callbacks in the order in which they meet the untouched policy.

    ``kind``: of the module, for one that only rehearses.
    """
    config, rows, end, store = study.config, study.rows, study.evaluator.encoder.end, None
    beliefs = config.beliefs or BeliefConfig()
    if Role.belief in union_of_needs(study.terms).policy:
        store = BeliefStore(beliefs.per_step, config.seed)
    data = UnlearnData(rows, config.data.batch_size, config.seed, store, study.pairing)
    module = _module(study, policy, kind)
    engine, evaluation = module.engine, _evaluation(study, policy, module.engine, retain_model, run_dir)
    judges = filter(None, (evaluation.choice, evaluation.disruption))
    callbacks: list[L.Callback] = [Progress(UNLEARNING), Throughput(), evaluation, *judges]
    if study.plan.stored:
        directory, size = Path(config.model.reference_cache or run_dir / "reference"), config.evaluation.batch_size
        callbacks.append(ReferenceCache(data, study.plan.stored, size, directory, engine))
    if config.squeeze is not None:
        callbacks.append(SqueezeProbe(rows[Role.forget], config.squeeze, end, config.seed, study.control))
    if store is not None:
        callbacks.append(BeliefSampler(store, data, beliefs, end, config.seed, config.keeps_text))
    if config.data.micro_batch_size == "auto":
        callbacks.append(MicroBatches(config, size_of(policy), data, study.plan.resident))
    if config.logging.gradient_shares_every_n_steps:
        callbacks.append(GradientShares(config.logging.gradient_shares_every_n_steps))
    return module, data, [*callbacks, *study.schedules], evaluation


def _module(study: Study, policy: PreTrainedModel, kind: type[UnlearnModule]) -> UnlearnModule:
    """The policy as it is trained, and the second model where one is kept."""
    config, reference = study.config, None
    hold_weights(policy, config.optim.name)
    quantize_base(policy, config.model.lora)
    if study.plan.resident:
        start = copy.deepcopy(policy)
        follow(start, policy)
        reference = ScoringEngine(start, config.model.logits_mib)
    if config.model.lora is not None:
        add_adapters(policy, config.model.lora)
    freeze_others(policy, config.optim.trainable)
    engine = ScoringEngine(policy, config.model.logits_mib, _SHAPES if config.model.compile else 1)
    if not engine.packs:
        name, attention = type(policy).__name__, config.model.attention
        log.warning("%s with model.attention=%s cannot run packed rows: they are padded", name, attention)
    return kind(engine, study.terms, config.optim, reference, config.data.given_size)


def _evaluation(
    study: Study, policy: PreTrainedModel, engine: ScoringEngine, retain_model: str | None, run_dir: Path
) -> Evaluation:
    """With what chooses the weights, and what makes of them those that are exported."""
    config = study.config
    asker = retain_model_asker(config, retain_model, study.evaluator)
    dtype, settle = export_dtype(config, policy), None
    if dtype != torch.float32:  # else what is trained is exported
        name = config.strategy.name
        if name.startswith("zero") or (name == "fsdp2" and config.model.lora is not None):
            raise UserError(
                f"export.dtype={config.export.dtype} rounds whole weights to {dtype} before the last evaluation, and "
                f"strategy.name={name} keeps them in pieces: set export.dtype=float32"
            )
        settle = partial(round_weights, dtype=dtype, form=config.export.form)
    every, judges = config.evaluation.every_n_epochs, build_choice(study, run_dir, engine)
    return Evaluation(study.evaluator, run_dir, every, asker, settle, *judges)


def build_choice(study: Study, run_dir: Path, start: ScoringEngine) -> tuple[Choice | None, Disruption | None]:
    """What keeps the best weights and what measures the way from the start; None: the config asks for no such thing."""
    config = study.config
    choice = Choice.of(config.evaluation, run_dir)
    if choice is None or config.evaluation.disruption is None:
        return choice, None
    data = UnlearnData({Role.retain: study.held_out}, config.data.batch_size, config.seed)
    size = config.evaluation.batch_size
    asks = KL_TO_START[DISRUPTION].objective.needs.reference
    cache = ReferenceCache(data, asks, size, run_dir / "reference", start)
    return choice, Disruption(cache, config.evaluation.disruption, choice, size)


def export_dtype(config: Config, policy: PreTrainedModel) -> torch.dtype:
    """In which the policy will be exported."""
    if config.export.dtype == "same":
        return stored_dtype(policy, config.model.trust_remote_code)
    return torch.bfloat16 if config.export.dtype == "bfloat16" else torch.float32


def retain_model_asker(
    config: Config, path: str | None, evaluator: Evaluator
) -> Callable[[torch.device], Records] | None:
    """A function that loads the retain model, asks it in tokens of its own and lets it go; None where none is named."""
    if path is None:
        return None

    def ask(device: torch.device) -> Records:
        model, tokenizer = load_pretrained(path, config.model)
        own = evaluator.in_tokens_of(build_encoder(config, tokenizer, model.requires_grad_(False)))  # casts stay not
        return own.ask(ScoringEngine(model, config.model.logits_mib).to(device), "retain_model")

    def ask_and_release(device: torch.device) -> Records:
        records = ask(device)
        release()
        return records

    return ask_and_release
