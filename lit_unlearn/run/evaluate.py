"""Puts a benchmark's questions to a saved model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from transformers import PreTrainedModel

from lit_unlearn.config.schema import Config
from lit_unlearn.display.screen import display
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.evaluation.base import Records
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.evaluation.records import write_records
from lit_unlearn.evaluation.report import table
from lit_unlearn.files import write_json
from lit_unlearn.models.load import load_pretrained
from lit_unlearn.recording.outputs import check_run_dir, open_run
from lit_unlearn.run.assemble import retain_model_asker
from lit_unlearn.run.early.limits import check_lengths
from lit_unlearn.run.early.outlook import evaluation_outlook
from lit_unlearn.run.early.rehearsal import rehearse_questions
from lit_unlearn.run.plan import plan_asking
from lit_unlearn.run.prepare import build_encoder, build_evaluator, load_benchmark
from lit_unlearn.run.resume import dated, write_start
from lit_unlearn.schemas import METRICS
from lit_unlearn.training.trainer import build_fabric, has_begun_together, prepare_device


def evaluate(config: Config) -> None:
    """Write ``records/`` and ``metrics.json`` with ``evaluated`` and, where it is known, ``retain_model``."""
    config = dated(config)
    assert config.model.path is not None
    check_run_dir(config.output_dir, resume=False, overwrite=config.overwrite)
    prepare_device(config.trainer)
    benchmark = load_benchmark(config)
    policy, tokenizer = load_pretrained(config.model.path, config.model)
    evaluator = build_evaluator(config, benchmark, build_encoder(config, tokenizer, policy))
    check_lengths({}, evaluator, policy)
    if rank_zero_only.rank == 0 or has_begun_together():  # else the first has done it for all
        rehearse_questions(evaluator, policy, config)
    if config.check:
        if rank_zero_only.rank == 0:
            print(evaluation_outlook(evaluator, policy, config))
        return

    with open_run(config.output_dir, resume=False, overwrite=config.overwrite) as run_dir:
        write_start(run_dir, config)
        _run(config, policy, evaluator, run_dir)


def _run(config: Config, policy: PreTrainedModel, evaluator: Evaluator, run_dir: Path) -> None:
    """All that writes into ``run_dir``, which is this run's alone."""
    fabric = build_fabric(config.trainer)
    fabric.launch()
    L.seed_everything(config.seed, verbose=False)
    asks: dict[str, Callable[[torch.device], Records]] = {
        "evaluated": lambda device: evaluator.ask(
            ScoringEngine(policy, config.model.logits_mib).to(device), "evaluated"
        )
    }
    ask_retain_model = retain_model_asker(config, config.evaluation.retain_model, evaluator)
    if ask_retain_model is not None:
        asks = {"retain_model": ask_retain_model, **asks}
    numbers: dict[str, dict[str, float]] = {}
    selection: dict[str, dict[str, float]] = {}
    with display(run_dir.name, [plan_asking(name) for name in asks], shown=fabric.is_global_zero):
        for name, ask in asks.items():
            with fabric.autocast():
                records = ask(fabric.device)
            if name == "retain_model":
                evaluator.retain_model = records
            numbers[name] = evaluator.report(records)
            if evaluator.split is not None:
                selection[name] = evaluator.select(records)
            if fabric.is_global_zero:
                write_records(run_dir / "records" / name, records)
    if fabric.is_global_zero:
        if evaluator.split is not None:
            write_json(run_dir / "records" / "selection.json", evaluator.split.as_lists())
        write_json(
            run_dir / "metrics.json", {"schema": METRICS} | numbers | ({"selection": selection} if selection else {})
        )
        print(table(numbers))
        print(f"\nwritten: {run_dir}")
