"""Puts a benchmark's questions to a saved model."""

from __future__ import annotations

import lightning as L

from lit_unlearn.config.schema import Config
from lit_unlearn.display.screen import display
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.evaluation.records import write_records
from lit_unlearn.evaluation.report import table
from lit_unlearn.models.load import load_pretrained, stop_ids
from lit_unlearn.recording.outputs import open_run, write_json
from lit_unlearn.run.assemble import retain_model_loader
from lit_unlearn.run.plan import plan_asking
from lit_unlearn.run.prepare import build_encoder, build_evaluator, load_benchmark
from lit_unlearn.run.resume import write_start
from lit_unlearn.schemas import METRICS
from lit_unlearn.training.trainer import build_fabric, prepare_device


def evaluate(config: Config) -> None:
    """Write ``records/`` and ``metrics.json`` with ``evaluated`` and, where it is known, ``retain_model``."""
    assert config.model.path is not None
    prepare_device(config.trainer)
    benchmark = load_benchmark(config)
    policy, tokenizer = load_pretrained(config.model.path, config.model)
    evaluator = build_evaluator(config, benchmark, build_encoder(config, tokenizer), stop_ids(policy, tokenizer))

    run_dir = open_run(config.output_dir, resume=False, overwrite=config.overwrite)
    write_start(run_dir, config)
    fabric = build_fabric(config.trainer)
    fabric.launch()
    L.seed_everything(config.seed, verbose=False)
    engines = {"evaluated": lambda: ScoringEngine(policy, config.model.logits_mib)}
    load_retain_model = retain_model_loader(config, config.evaluation.retain_model)
    if load_retain_model is not None:
        engines = {"retain_model": load_retain_model, **engines}
    numbers = {}
    with display(run_dir.name, [plan_asking(name) for name in engines], shown=fabric.is_global_zero):
        for name, load_engine in engines.items():
            with fabric.autocast():
                records = evaluator.ask(load_engine().to(fabric.device), name)
            if name == "retain_model":
                evaluator.retain_model = records
            numbers[name] = evaluator.report(records)
            if fabric.is_global_zero:
                write_records(run_dir / "records" / name, records)
    if fabric.is_global_zero:
        write_json(run_dir / "metrics.json", {"schema": METRICS} | numbers)
        print(table(numbers))
        print(f"\nwritten: {run_dir}")
