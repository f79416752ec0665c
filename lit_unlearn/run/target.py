"""Makes the two models unlearning is judged between: the target, which knows everything, and the retain model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from lit_unlearn.callbacks.progress import Progress
from lit_unlearn.callbacks.throughput import Throughput
from lit_unlearn.config.schema import Config, FinetuneConfig
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.display.screen import display
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.models.load import load_model
from lit_unlearn.recording.wandb.run import close_wandb
from lit_unlearn.run.early.start import Start, start
from lit_unlearn.run.loggers import build_loggers
from lit_unlearn.run.plan import finetuning_title, missing_models, plan_finetuning
from lit_unlearn.run.prepare import KINDS, corpus, finetuning_terms
from lit_unlearn.strategies.saving import save_trained
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.optimizers import hold_weights
from lit_unlearn.training.trainer import build_trainer, fit, release
from lit_unlearn.types import Role


def finetune(config: Config) -> None:
    """Write ``output_dir/target`` and ``output_dir/retain``, without unlearning."""
    made = start(config, lambda directory: not missing_models(directory), _carry_out, unlearns=False)
    if made is not None and rank_zero_only.rank == 0:
        print("\n".join(f"{kind} model: {path}" for kind, path in made.items()))


def _carry_out(begun: Start, run_dir: Path) -> dict[str, Path]:
    finetune = begun.config.finetune
    assert finetune is not None
    plan = plan_finetuning(finetune, begun.benchmark, run_dir)
    with display(run_dir.name, plan, shown=rank_zero_only.rank == 0):
        return finetune_models(begun, finetune, run_dir)


def finetune_models(begun: Start, finetune: FinetuneConfig, directory: Path) -> dict[str, Path]:
    """``{"target": path, "retain": path}``: both finetuned from the same start; a model already there is kept."""
    for kind in missing_models(directory):
        _finetune(begun, finetune, kind, directory / kind)
        release()
    return {kind: directory / kind for kind in KINDS}


def _finetune(begun: Start, finetune: FinetuneConfig, kind: str, path: Path) -> None:
    config = begun.config
    L.seed_everything(config.seed, verbose=False)
    model, tokenizer = load_model(config.model, corpus(config, begun.benchmark), config.strategy.cuts_weights)
    hold_weights(model, finetune.optim.name)
    data = UnlearnData({Role.retain: begun.study.finetuning[kind]}, finetune.batch_size, config.seed)
    module = UnlearnModule(ScoringEngine(model, config.model.logits_mib), finetuning_terms(), finetune.optim)
    never = {f"checkpoint_every_n_{unit}": 0 for unit in ("epochs", "steps", "minutes")}  # but for a signal
    trainer_config = replace(config.trainer, max_epochs=finetune.max_epochs, max_steps=-1, **never)
    directory = path.parent / f"{kind}_run"
    callbacks = [Progress(finetuning_title(kind)), Throughput()]
    loggers = build_loggers(config, directory, f"finetune_{kind}")
    trainer = build_trainer(trainer_config, config.strategy, directory, callbacks, loggers, module.learns_partly)
    fit(trainer, module, data, directory)
    save_trained(trainer.strategy, model, tokenizer, path)
    if trainer.is_global_zero:
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    close_wandb(loggers)
    trainer.strategy.barrier()
