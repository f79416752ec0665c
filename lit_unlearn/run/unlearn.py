"""The main path: read and try out, (finetune,) build, fit, evaluate, save."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.callbacks.page import Page
from lit_unlearn.config.schema import Config
from lit_unlearn.display.screen import display, phase
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.records import are_complete, read_records, write_records
from lit_unlearn.files import is_finished
from lit_unlearn.models.load import load_pretrained
from lit_unlearn.recording.export.hub import push
from lit_unlearn.recording.export.saved_model import Export
from lit_unlearn.recording.wandb.run import close_wandb
from lit_unlearn.run.assemble import assemble, export_dtype
from lit_unlearn.run.early.memory import within_memory
from lit_unlearn.run.early.outlook import memory_plan
from lit_unlearn.run.early.start import Start, start
from lit_unlearn.run.export.card import card_of
from lit_unlearn.run.loggers import build_loggers
from lit_unlearn.run.plan import SAVING, plan_run
from lit_unlearn.run.results import MODELS, write_results
from lit_unlearn.run.target import finetune_models
from lit_unlearn.strategies.saving import save_trained
from lit_unlearn.strategies.whole import Sharded
from lit_unlearn.training.trainer import build_trainer, fit, release


@dataclass(frozen=True)
class Run:
    """What came of it, while it is still in memory."""

    directory: Path
    metrics: Mapping[str, Mapping[str, float]]
    """``original``, ``unlearned`` and, where there is one, ``retain_model``: number by name, as in ``metrics.json``;
    those that are not known are left out."""
    model: PreTrainedModel
    """In evaluation mode, with its adapters inside where it has some; ``directory / "model"`` holds a plain one."""
    tokenizer: PreTrainedTokenizerBase


def unlearn(config: Config, loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None) -> Run | None:
    """Everything ``python -m lit_unlearn.train`` does once its arguments are right.

    ``loaded``: the model, as ``load_model`` reads it, where it is in memory already.

    Raises:
        UserError: whatever the user can mend; where it is the Hub that did not take the model, the run is finished.

    Returns:
        None where the run was finished before, or only checked, or trained with its weights in pieces: what it wrote
        is read by ``finished_run``.
    """
    came = start(config, is_finished, _carry_out, loaded=loaded)
    release()
    if came is None:
        return None
    run, results = came
    if results is not None:
        print(results, flush=True)
        if config.export.push_to_hub is not None:  # last: what fails here takes nothing back
            address = push(Path(config.output_dir) / "model", config.export.push_to_hub, config.export.private)
            print(f"  {address}")
    return run


def finished_run(config: Config) -> Run:
    """What a run wrote that is not in memory.

    Raises:
        UserError: it exported adapters alone.
    """
    directory = Path(config.output_dir)
    if config.export.form == "adapter":
        raise UserError(
            f"{directory / 'model'} holds adapters alone: put them on {config.model.path} by peft's "
            "PeftModel.from_pretrained, or set export.form=merged in another run"
        )
    written = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    known = {name: written[name] for name in MODELS if written.get(name) is not None}
    numbers = {name: {key: value for key, value in of.items() if value is not None} for name, of in known.items()}
    policy, tokenizer = load_pretrained(str(directory / "model"), config.model)
    return Run(directory, numbers, policy.eval(), tokenizer)


def _carry_out(begun: Start, run_dir: Path) -> tuple[Run | None, str | None]:
    """What came of it, and on the first rank the text that says so."""
    known, original = begun.config.evaluation.original_records, run_dir / "records" / "original"
    if known is not None and rank_zero_only.rank == 0 and not are_complete(original):
        write_records(original, read_records(Path(known)))
    plan = plan_run(begun.study, begun.benchmark, run_dir)
    with display(run_dir.name, plan, shown=rank_zero_only.rank == 0):
        return _unlearn(begun, run_dir)


def _unlearn(begun: Start, run_dir: Path) -> tuple[Run | None, str | None]:
    config = begun.config
    retain_model = config.evaluation.retain_model
    if config.finetune:
        made = finetune_models(begun, config.finetune, run_dir / "finetune")
        policy = load_pretrained(str(made["target"]), config.model, config.strategy.cuts_weights)[0]
        retain_model = str(made["retain"])
    else:
        policy = begun.take_policy()

    kind = type(policy).__name__  # FSDP2 gives it another
    L.seed_everything(config.seed, verbose=False)
    module, data, callbacks, evaluation = assemble(begun.study, policy, retain_model, run_dir)
    loggers = build_loggers(config, run_dir)
    page = Page(evaluation, run_dir, config.uploads_text)
    trainer = build_trainer(config.trainer, config.strategy, run_dir, [*callbacks, page], loggers, module.learns_partly)
    trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    with within_memory(memory_plan(begun.study, policy, trained)):
        fit(trainer, module, data, run_dir)
    evaluation.finish(trainer, module)

    results = None
    with phase(SAVING):
        card = card_of(begun.study, kind, evaluation.numbers, evaluation.rounding)
        stops = begun.study.evaluator.encoder.end.stops
        export = Export(export_dtype(config, policy), config.export.form, stops, card)
        save_trained(trainer.strategy, policy, begun.tokenizer, run_dir / "model", export)
        if trainer.is_global_zero:
            page.show(loggers)
            results = write_results(run_dir, evaluation, loggers)
            if evaluation.choice is not None:
                evaluation.choice.kept.clear()
            close_wandb(loggers)
    if isinstance(trainer.strategy, Sharded):
        trainer.strategy.barrier()  # whoever reads what was written
        return None, results
    numbers = {name: evaluation.numbers[name] for name in MODELS if name in evaluation.numbers}
    return Run(run_dir, numbers, policy.eval(), begun.tokenizer), results
