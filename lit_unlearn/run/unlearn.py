"""The main path: read, (finetune,) build, fit, evaluate, save."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.benchmarks.base import Benchmark
from lit_unlearn.callbacks.page import Page
from lit_unlearn.config.schema import Config
from lit_unlearn.display.screen import display, phase
from lit_unlearn.models.load import load_model, load_pretrained
from lit_unlearn.recording.checkpoints import last_checkpoint
from lit_unlearn.recording.outputs import open_run, save_model
from lit_unlearn.recording.wandb.run import close_wandb
from lit_unlearn.run.assemble import assemble
from lit_unlearn.run.loggers import build_loggers
from lit_unlearn.run.plan import SAVING, plan_run
from lit_unlearn.run.prepare import Study, check_extras, corpus, load_benchmark, prepare
from lit_unlearn.run.results import write_results
from lit_unlearn.run.resume import (
    check_inputs,
    check_resumed,
    dated,
    inputs_of,
    is_finished,
    tell_finished,
    write_start,
)
from lit_unlearn.run.target import finetune_models
from lit_unlearn.strategies.whole import consolidate
from lit_unlearn.training.trainer import build_trainer, prepare_device


def unlearn(config: Config) -> None:
    """Everything ``python -m lit_unlearn.train`` does once its arguments are right."""
    config = dated(config)
    if config.resume and not config.overwrite:
        check_resumed(Path(config.output_dir), config)
        if is_finished(Path(config.output_dir)):
            tell_finished(config.output_dir)
            return
    prepare_device(config.trainer)
    check_extras(config)
    benchmark = load_benchmark(config)
    L.seed_everything(config.seed, verbose=False)
    policy, tokenizer = load_model(config.model, corpus(config, benchmark))
    study = prepare(config, benchmark, policy, tokenizer)
    inputs = inputs_of(study, policy)
    if config.resume:
        check_inputs(Path(config.output_dir), inputs)
    with open_run(config.output_dir, config.resume, config.overwrite) as run_dir:
        write_start(run_dir, config, inputs)
        with display(run_dir.name, plan_run(study, benchmark, run_dir), shown=rank_zero_only.rank == 0):
            results = _carry_out(study, benchmark, policy, tokenizer, run_dir)
    if results is not None:
        print(results)


def _carry_out(
    study: Study, benchmark: Benchmark, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run_dir: Path
) -> str | None:
    """What came of it, on the first rank."""
    config = study.config
    retain_model = config.evaluation.retain_model
    if config.finetune:
        made = finetune_models(config, config.finetune, benchmark, run_dir / "finetune")
        policy, retain_model = load_pretrained(str(made["target"]), config.model)[0], str(made["retain"])

    L.seed_everything(config.seed, verbose=False)
    module, data, callbacks, evaluation = assemble(study, policy, retain_model, run_dir)
    loggers = build_loggers(config, run_dir)
    page = Page(evaluation, run_dir, config.uploads_text)
    trainer = build_trainer(config.trainer, config.strategy, run_dir, [*callbacks, page], loggers, module.learns_partly)
    trainer.fit(module, data, ckpt_path=last_checkpoint(run_dir), weights_only=True)
    evaluation.finish(trainer, module)
    consolidate(trainer.strategy, policy)

    if not trainer.is_global_zero:
        return None
    with phase(SAVING):
        save_model(policy, tokenizer, run_dir / "model")
        page.show(loggers)
        results = write_results(run_dir, evaluation.numbers, loggers)
        close_wandb(loggers)
    return results
