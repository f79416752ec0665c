"""One small step and a few questions before a run begins, with all that will take part in it; nothing of it remains."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from transformers import PreTrainedModel

from lit_unlearn.callbacks.belief_sampler import BeliefSampler
from lit_unlearn.callbacks.evaluation import Evaluation
from lit_unlearn.callbacks.gradient_shares import GradientShares
from lit_unlearn.callbacks.settings import BeliefConfig
from lit_unlearn.callbacks.squeeze_probe import SqueezeProbe
from lit_unlearn.config.schema import Config, FinetuneConfig
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.sampler import StepSampler
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.evaluation.collect import EncodedProbe
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.models.streamed.empty import stand_in
from lit_unlearn.reference.plan import ReferencePlan
from lit_unlearn.run.assemble import assemble
from lit_unlearn.run.early.module import Rehearsed
from lit_unlearn.run.early.untouched import told, untouched
from lit_unlearn.run.prepare import Study, build_schedules, finetuning_terms
from lit_unlearn.training.optimizers import hold_weights
from lit_unlearn.training.trainer import build_fabric, build_rehearsal
from lit_unlearn.types import Role

ROWS = 2
"""Of each role; with one a mix-up of rows would not show."""
TOKENS = 2
"""Longest answer that is generated."""
_HOOKS = [name for name, value in vars(L.Callback).items() if callable(value) and not name.startswith("_")]
_PLACES = {
    SqueezeProbe: "squeeze",
    BeliefSampler: "beliefs",
    GradientShares: "logging.gradient_shares_every_n_steps",
}
_CHATTY = ("lit_unlearn.callbacks", "lit_unlearn.run.assemble")
"""Loggers of what will be said again when the run itself is put together."""


def rehearse(study: Study, policy: PreTrainedModel, unlearns: bool = True) -> int:
    """One forward and backward of the run's first rows, then a question of each probe; the policy is left as it was.

    How many parameters the run will move comes back. In the place of a model without its weights a narrow one of its
    kind is tried, of as many blocks.

    Raises:
        UserError: a term, a callback, an adapter or a question fails; the message begins with its key.
    """
    actor = stand_in(policy, study.config.model)
    with _quiet():
        finetune, moved = study.config.finetune, _is_moved(study.config)
        if finetune is not None:
            with untouched(actor, moved), told("finetune"):
                _finetune(study, actor, finetune)
        if not unlearns:
            return policy.num_parameters()
        with untouched(actor, moved):
            trained = _unlearn(study, actor, actor is policy and finetune is None)
        if actor is policy:
            return trained
        with untouched(policy, moved), told("putting the run together"):
            return _trained(assemble(_small(study), policy, None, Path())[0])


def rehearse_questions(evaluator: Evaluator, policy: PreTrainedModel, config: Config) -> None:
    """Put a question of each probe to a model that is only evaluated. Raises UserError as ``rehearse`` does."""
    fabric = build_fabric(config.trainer)
    with untouched(policy, _is_moved(config)), told("evaluation"), fabric.autocast():
        engine = ScoringEngine(policy, config.model.logits_mib).to(fabric.device)
        _few(evaluator).ask(engine, "rehearsed")


def _is_moved(config: Config) -> bool:
    return config.trainer.accelerator != "cpu" and torch.cuda.is_available()


def first_rows(study: Study) -> dict[Role, list[Encoded]]:
    """Those of the first step over all ranks, without beliefs; alternates are all there, to choose from."""
    rows = {role: split for role, split in study.rows.items() if role != Role.alternate}
    anchor = Role.forget if Role.forget in rows else next(iter(rows))
    sizes, config = {role: len(split) for role, split in rows.items()}, study.config
    step = StepSampler(sizes, anchor, config.data.batch_size, config.seed).global_step(0, 0)
    first = {role: [rows[role][index] for index in chosen] for role, chosen in step.items()}
    return first | {role: split for role, split in study.rows.items() if role == Role.alternate}


def _finetune(study: Study, model: PreTrainedModel, finetune: FinetuneConfig) -> None:
    hold_weights(model, finetune.optim.name)
    engine = ScoringEngine(model, study.config.model.logits_mib)
    module = Rehearsed(engine, finetuning_terms(), finetune.optim)
    rows = next(iter(study.finetuning.values()))[:ROWS]
    build_rehearsal(study.config.trainer, []).fit(module, UnlearnData({Role.retain: rows}, ROWS, study.config.seed))


def _unlearn(study: Study, policy: PreTrainedModel, is_trained: bool) -> int:
    small = _small(study)
    with told("putting the run together"):
        module, data, callbacks, evaluation = assemble(small, policy, None, Path(), Rehearsed)
    assert isinstance(module, Rehearsed)
    module.is_trained = is_trained
    named = zip(small.config.schedules, small.schedules, strict=True)
    places = {id(schedule): f"schedules.{name}" for name, schedule in named}
    taking_part = [callback for callback in callbacks if not isinstance(callback, Evaluation)]
    for callback in taking_part:
        place = places.get(id(callback)) or _PLACES.get(type(callback), type(callback).__name__)
        for name in _HOOKS:
            if getattr(type(callback), name, None) is not getattr(L.Callback, name):
                setattr(callback, name, told(place)(getattr(callback, name)))
    trainer = build_rehearsal(study.config.trainer, taking_part)
    with told("a step of this run"):
        trainer.fit(module, data)
    with told("evaluation"), module.reading():
        evaluation.evaluator.ask(module.engine, "rehearsed")
    return _trained(module)


def _trained(module: L.LightningModule) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def _small(study: Study) -> Study:
    """The same run with few rows, short answers and no stored reference."""
    config = study.config
    beliefs, squeeze = config.beliefs, config.squeeze
    if beliefs is None and Role.belief in {role for t in study.terms.values() for role in t.objective.needs.policy}:
        beliefs = BeliefConfig()
    if beliefs is not None:
        tokens, samples = min(beliefs.max_new_tokens, TOKENS), min(beliefs.num_samples, TOKENS)
        beliefs = replace(beliefs, max_new_tokens=tokens, num_samples=samples)
    if squeeze is not None:
        tokens = min(squeeze.max_new_tokens, TOKENS)
        squeeze = replace(squeeze, num_prompts=1, num_responses=1, max_new_tokens=tokens, every_n_steps=1)
    micro = config.data.micro_batch_size
    data = replace(config.data, batch_size=ROWS, micro_batch_size=None if micro == "auto" else micro)
    evaluation = replace(config.evaluation, keep_best=None, early_stop=None, disruption=None)  # they write
    rows = {role: split if role == Role.alternate else split[:ROWS] for role, split in first_rows(study).items()}
    return replace(
        study,
        config=replace(config, beliefs=beliefs, squeeze=squeeze, data=data, evaluation=evaluation),
        rows=rows,
        plan=ReferencePlan(),
        schedules=build_schedules(config, study.terms),
        evaluator=_few(study.evaluator),
        control=study.control[:1],
    )


def _few(evaluator: Evaluator) -> Evaluator:
    """One question of each probe, with all its answers."""
    asking = replace(evaluator.asking, max_new_tokens=min(evaluator.asking.max_new_tokens, TOKENS))
    return replace(evaluator, probes=[_first(probe) for probe in evaluator.probes], asking=asking)


def _first(probe: EncodedProbe) -> EncodedProbe:
    chosen = [index for index, row in enumerate(probe.rows) if row.id == probe.rows[0].id]
    cut = {name: [getattr(probe, name)[i] for i in chosen] for name in ("rows", "choices", "targets", "questions")}
    return replace(probe, **cut)


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
