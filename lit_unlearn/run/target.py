"""Makes the two models unlearning is judged between: the target, which knows everything, and the retain model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L

from lit_unlearn.benchmarks.base import Benchmark
from lit_unlearn.callbacks.throughput import Throughput
from lit_unlearn.config.schema import Config, FinetuneConfig
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.models.load import load_model
from lit_unlearn.objectives.nll import NLL
from lit_unlearn.recording.history import History
from lit_unlearn.recording.outputs import open_run, save_model
from lit_unlearn.run.prepare import build_encoder, check_extras, corpus, load_benchmark, prepare
from lit_unlearn.run.resume import write_start
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.optimizers import hold_weights
from lit_unlearn.training.trainer import build_trainer, prepare_device
from lit_unlearn.types import Role, Term


def finetune(config: Config) -> None:
    """Write ``output_dir/target`` and ``output_dir/retain``, without unlearning."""
    assert config.finetune is not None
    prepare_device(config.trainer)
    check_extras(config)
    benchmark = load_benchmark(config)
    policy, tokenizer = load_model(config.model, corpus(benchmark))
    prepare(config, benchmark, policy, tokenizer)
    run_dir = open_run(config.output_dir, config.resume, config.overwrite)
    write_start(run_dir, config)
    for kind, path in finetune_models(config, config.finetune, benchmark, run_dir).items():
        print(f"{kind} model: {path}")


def finetune_models(config: Config, finetune: FinetuneConfig, benchmark: Benchmark, directory: Path) -> dict[str, Path]:
    """``{"target": path, "retain": path}``: both finetuned from the same start; a model already there is kept."""
    paths = {kind: directory / kind for kind in ("target", "retain")}
    for kind, path in paths.items():
        if not (path / "config.json").is_file():
            _finetune(config, finetune, benchmark, kind, path)
    return paths


def _finetune(config: Config, finetune: FinetuneConfig, benchmark: Benchmark, kind: str, path: Path) -> None:
    L.seed_everything(config.seed, verbose=False)
    model, tokenizer = load_model(config.model, corpus(benchmark))
    hold_weights(model, finetune.optim.name)
    rows = build_encoder(config, tokenizer).encode(benchmark.finetune_split(kind), f"{kind} model's split")
    data = UnlearnData({Role.retain: rows}, finetune.batch_size, config.seed)
    module = UnlearnModule(
        ScoringEngine(model, config.model.logits_mib), {"finetune": Term(1.0, NLL(Role.retain))}, finetune.optim
    )
    trainer_config = replace(config.trainer, max_epochs=finetune.max_epochs, max_steps=-1, checkpoint_every_n_epochs=0)
    directory = path.parent / f"{kind}_run"
    trainer = build_trainer(trainer_config, directory, [Throughput()], [History(directory)], module.learns_partly)
    trainer.fit(module, data)
    if trainer.is_global_zero:
        save_model(model, tokenizer, path)
    trainer.strategy.barrier()
