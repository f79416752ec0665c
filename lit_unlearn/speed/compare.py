"""The plain recipe against ours, on this machine; or the plan, which measures nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lit_unlearn.errors import UserError
from lit_unlearn.files import write_json
from lit_unlearn.memory.tokens import count_tokens
from lit_unlearn.recording.environment import environment
from lit_unlearn.speed.measure.decoding import belief_costs
from lit_unlearn.speed.measure.evaluation import evaluate
from lit_unlearn.speed.measure.flops import ceiling
from lit_unlearn.speed.measure.memory import peak_bytes
from lit_unlearn.speed.measure.slope import slopes
from lit_unlearn.speed.measure.step import Turns, optimizer_seconds, step_cell
from lit_unlearn.speed.plan.named import model_size
from lit_unlearn.speed.plan.scaling import scaling_json, scaling_table
from lit_unlearn.speed.plan.table import plan_json, plan_table
from lit_unlearn.speed.settings import Precision, SpeedConfig
from lit_unlearn.speed.table import report
from lit_unlearn.speed.workload.cells import PATHS, Spec, build
from lit_unlearn.speed.workload.models import Models, random_models
from lit_unlearn.speed.workload.rows import step_rows
from lit_unlearn.speed.workload.shapes import SHAPES
from lit_unlearn.types import Role

log = logging.getLogger("lit_unlearn.speed")


def compare(config: SpeedConfig) -> None:
    """Measure or plan, print; numbers are written after every part, so that an interruption keeps them."""
    if config.output is not None and not Path(config.output).absolute().parent.is_dir():
        raise UserError(f"output={config.output}: its directory does not exist")
    if config.output is not None and Path(config.output).is_dir():
        raise UserError(f"output={config.output} is a directory; name a file in it")
    results: dict[str, Any] = {"config": asdict(config), "environment": environment()}
    if config.plan:
        assert config.model is not None
        size = model_size(config.model)
        rows = step_rows(config.parts(), config.rows, size.vocab, config.seed)
        tokens = count_tokens({role: rows[role] for role in (Role.forget, Role.retain)})
        full = config.checkpointing == "full"
        results["plan"] = plan_json(size, tokens, config.cards, full)
        results["scaling"] = scaling_json(size, tokens, config.network, config.micro_batches, full)
        _write(config, results)
        print(f"{config.model}, {config.rows} forget + {config.rows} retain rows a GPU, {config.lengths}: {tokens}\n")
        print(plan_table(results["plan"]))
        print(f"\n{scaling_table(results['scaling'])}")
        return
    measure(config, results)


def measure(config: SpeedConfig, results: dict[str, Any]) -> None:
    device = _device(config)
    precision: Precision = "bf16-mixed" if device.type == "cuda" else "32-true"
    if config.precision != "auto":
        precision = config.precision
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    flops, source = ceiling(device, precision)
    results["machine"] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": precision,
        "threads": torch.get_num_threads(),
        "ceiling_tflops": flops / 1e12,
        "ceiling": source,
    }
    turns, clock = Turns(config.repeats, config.warmups), "wall" if device.type == "cuda" else "cpu"
    for name in config.shapes:
        models = random_models(SHAPES[name], config.seed, device)
        common = (config.rows, config.parts(), config.seed, device, precision, config.checkpointing)
        spec = Spec(SHAPES[name], "npo", *common)
        for objective in config.cells():
            log.info("%s: %s", name, objective)
            cell = _cell(config, replace(spec, objective=objective), models, turns, flops)
            results.setdefault("cells", []).append({"shape": name} | cell)
            _write(config, results)
        if "bss" in config.what:
            log.info("%s: ratios of our own objectives, and sampling beliefs", name)
            results.setdefault("bss", {})[name] = belief_costs(spec, models, turns, config.questions)
        if "evaluation" in config.what:
            log.info("%s: evaluation", name)
            results.setdefault("evaluation", {})[name] = evaluate(spec, models, turns, config.questions)
        if "step" in config.what:
            models.start.to("cpu")  # room for the optimizer's state  # type: ignore[arg-type]
            cell = build(replace(spec, objective="bst_alone"), models)
            results.setdefault("optimizer_seconds", {})[name] = optimizer_seconds(cell, turns)
        _write(config, results)
    if "slope" in config.what:
        log.info("peak memory against answer tokens")
        results["slope"] = slopes(config.seed, device, precision)
        _write(config, results)
    print(report(results, clock))


def _device(config: SpeedConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no CUDA device; set device=cpu or auto")
    return torch.device("cuda", 0) if config.device != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def _cell(config: SpeedConfig, spec: Spec, models: Models, turns: Turns, flops: float) -> dict[str, Any]:
    """``rmu`` in ``what`` stands for both of its measurements."""
    all_of_it = spec.objective == "rmu" and "rmu" in config.what
    cell: dict[str, Any] = {"objective": spec.objective}
    try:
        if "step" in config.what or all_of_it:
            cell |= step_cell(build(spec, models), turns, flops)
        if ("memory" in config.what or all_of_it) and "failed" not in cell:
            cell["peak_bytes"] = {path: peak_bytes(spec, path, models) for path in PATHS}
    except torch.OutOfMemoryError:
        models.policy.zero_grad(set_to_none=True)
        cell["failed"] = "out of memory"
    return cell


def _write(config: SpeedConfig, results: Mapping[str, Any]) -> None:
    if config.output is not None:
        write_json(Path(config.output), results)
