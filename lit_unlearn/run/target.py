"""Makes the two models unlearning is judged between: the target, which knows everything, and the retain model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from lit_unlearn.benchmarks.base import Benchmark
from lit_unlearn.callbacks.progress import Progress
from lit_unlearn.callbacks.throughput import Throughput
from lit_unlearn.config.schema import Config, FinetuneConfig
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.display.screen import display
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.models.load import load_model
from lit_unlearn.objectives.nll import NLL
from lit_unlearn.recording.outputs import open_run, save_model
from lit_unlearn.recording.wandb.run import close_wandb
from lit_unlearn.run.loggers import build_loggers
from lit_unlearn.run.plan import KINDS, finetuning_title, missing_models, plan_finetuning
from lit_unlearn.run.prepare import build_encoder, check_extras, corpus, load_benchmark, prepare
from lit_unlearn.run.resume import check_inputs, check_resumed, dated, inputs_of, tell_finished, write_start
from lit_unlearn.strategies.whole import consolidate
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.optimizers import hold_weights
from lit_unlearn.training.trainer import build_trainer, prepare_device
from lit_unlearn.types import Role, Term


def finetune(config: Config) -> None:
    """Write ``output_dir/target`` and ``output_dir/retain``, without unlearning."""
    config = dated(config)
    assert config.finetune is not None
    if config.resume and not config.overwrite:
        check_resumed(Path(config.output_dir), config)
        if not missing_models(Path(config.output_dir)):
            tell_finished(config.output_dir)
            return
    prepare_device(config.trainer)
    check_extras(config)
    benchmark = load_benchmark(config)
    L.seed_everything(config.seed, verbose=False)
    policy, tokenizer = load_model(config.model, corpus(config, benchmark))
    inputs = inputs_of(prepare(config, benchmark, policy, tokenizer), policy)
    if config.resume:
        check_inputs(Path(config.output_dir), inputs)
    with open_run(config.output_dir, config.resume, config.overwrite) as run_dir:
        write_start(run_dir, config, inputs)
        plan = plan_finetuning(config.finetune, benchmark, run_dir)
        with display(run_dir.name, plan, shown=rank_zero_only.rank == 0):
            made = finetune_models(config, config.finetune, benchmark, run_dir)
    if rank_zero_only.rank == 0:
        print("\n".join(f"{kind} model: {path}" for kind, path in made.items()))


def finetune_models(config: Config, finetune: FinetuneConfig, benchmark: Benchmark, directory: Path) -> dict[str, Path]:
    """``{"target": path, "retain": path}``: both finetuned from the same start; a model already there is kept."""
    for kind in missing_models(directory):
        _finetune(config, finetune, benchmark, kind, directory / kind)
    return {kind: directory / kind for kind in KINDS}


def _finetune(config: Config, finetune: FinetuneConfig, benchmark: Benchmark, kind: str, path: Path) -> None:
    L.seed_everything(config.seed, verbose=False)
    model, tokenizer = load_model(config.model, corpus(config, benchmark))
    hold_weights(model, finetune.optim.name)
    rows = build_encoder(config, tokenizer, model).encode(benchmark.finetune_split(kind), f"{kind} model's split")
    data = UnlearnData({Role.retain: rows}, finetune.batch_size, config.seed)
    module = UnlearnModule(
        ScoringEngine(model, config.model.logits_mib), {"finetune": Term(1.0, NLL(Role.retain))}, finetune.optim
    )
    trainer_config = replace(config.trainer, max_epochs=finetune.max_epochs, max_steps=-1, checkpoint_every_n_epochs=0)
    directory = path.parent / f"{kind}_run"
    callbacks = [Progress(finetuning_title(kind)), Throughput()]
    loggers = build_loggers(config, directory, f"finetune_{kind}")
    trainer = build_trainer(trainer_config, config.strategy, directory, callbacks, loggers, module.learns_partly)
    trainer.fit(module, data)
    consolidate(trainer.strategy, model)
    if trainer.is_global_zero:
        save_model(model, tokenizer, path)
    close_wandb(loggers)
    trainer.strategy.barrier()
