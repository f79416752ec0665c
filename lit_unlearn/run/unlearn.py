"""The main path: read, (finetune,) build, fit, evaluate, save."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from lit_unlearn.config.schema import Config
from lit_unlearn.models.load import load_model, load_pretrained
from lit_unlearn.recording.outputs import last_checkpoint, open_run, save_model
from lit_unlearn.run.assemble import assemble, build_loggers
from lit_unlearn.run.prepare import check_extras, corpus, load_benchmark, prepare
from lit_unlearn.run.results import write_results
from lit_unlearn.run.resume import check_resumed, write_start
from lit_unlearn.run.target import finetune_models
from lit_unlearn.training.trainer import build_trainer, prepare_device


def unlearn(config: Config) -> None:
    """Everything ``python -m lit_unlearn.train`` does once its arguments are right."""
    prepare_device(config.trainer)
    check_extras(config)
    benchmark = load_benchmark(config)
    L.seed_everything(config.seed, verbose=False)
    policy, tokenizer = load_model(config.model, corpus(benchmark))
    study = prepare(config, benchmark, policy, tokenizer)

    if config.resume:
        check_resumed(Path(config.output_dir), config)
    run_dir = open_run(config.output_dir, config.resume, config.overwrite)
    write_start(run_dir, config)
    retain_model = config.evaluation.retain_model
    if config.finetune:
        made = finetune_models(config, config.finetune, benchmark, run_dir / "finetune")
        policy, retain_model = load_pretrained(str(made["target"]), config.model)[0], str(made["retain"])

    L.seed_everything(config.seed, verbose=False)
    module, data, callbacks, evaluation = assemble(study, policy, retain_model, run_dir)
    loggers = build_loggers(config, run_dir)
    trainer = build_trainer(config.trainer, run_dir, callbacks, loggers, module.learns_partly)
    trainer.fit(module, data, ckpt_path=last_checkpoint(run_dir))
    evaluation.finish(trainer, module)

    if trainer.is_global_zero:
        save_model(policy, tokenizer, run_dir / "model")
        print(write_results(run_dir, evaluation.numbers, loggers))
