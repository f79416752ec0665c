"""The main path: read and try out, (finetune,) build, fit, evaluate, save."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from lit_unlearn.callbacks.page import Page
from lit_unlearn.config.schema import Config
from lit_unlearn.display.screen import display, phase
from lit_unlearn.models.load import load_pretrained
from lit_unlearn.recording.checkpoints import last_checkpoint
from lit_unlearn.recording.outputs import save_model
from lit_unlearn.recording.wandb.run import close_wandb
from lit_unlearn.run.assemble import assemble
from lit_unlearn.run.early.start import Start, start
from lit_unlearn.run.loggers import build_loggers
from lit_unlearn.run.plan import SAVING, plan_run
from lit_unlearn.run.results import write_results
from lit_unlearn.run.resume import is_finished
from lit_unlearn.run.target import finetune_models
from lit_unlearn.strategies.whole import consolidate
from lit_unlearn.training.trainer import build_trainer, release


def unlearn(config: Config) -> None:
    """Everything ``python -m lit_unlearn.train`` does once its arguments are right."""
    results = start(config, is_finished, _carry_out)
    release()
    if results is not None:
        print(results)


def _carry_out(begun: Start, run_dir: Path) -> str | None:
    """What came of it, on the first rank."""
    plan = plan_run(begun.study, begun.benchmark, run_dir)
    with display(run_dir.name, plan, shown=rank_zero_only.rank == 0):
        return _unlearn(begun, run_dir)


def _unlearn(begun: Start, run_dir: Path) -> str | None:
    config = begun.config
    retain_model = config.evaluation.retain_model
    if config.finetune:
        made = finetune_models(begun, config.finetune, run_dir / "finetune")
        policy, retain_model = load_pretrained(str(made["target"]), config.model)[0], str(made["retain"])
    else:
        policy = begun.take_policy()

    L.seed_everything(config.seed, verbose=False)
    module, data, callbacks, evaluation = assemble(begun.study, policy, retain_model, run_dir)
    loggers = build_loggers(config, run_dir)
    page = Page(evaluation, run_dir, config.uploads_text)
    trainer = build_trainer(config.trainer, config.strategy, run_dir, [*callbacks, page], loggers, module.learns_partly)
    trainer.fit(module, data, ckpt_path=last_checkpoint(run_dir), weights_only=True)
    evaluation.finish(trainer, module)
    consolidate(trainer.strategy, policy)

    if not trainer.is_global_zero:
        return None
    with phase(SAVING):
        save_model(policy, begun.tokenizer, run_dir / "model")
        page.show(loggers)
        results = write_results(run_dir, evaluation.numbers, loggers)
        close_wandb(loggers)
    return results
