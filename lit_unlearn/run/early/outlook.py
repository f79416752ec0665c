"""What a run would do, as text: what ``check=true`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from math import ceil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lit_unlearn.callbacks.choosing.choice import Choice
from lit_unlearn.callbacks.settings import BeliefConfig
from lit_unlearn.config.schema import Config
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.display.phases import Planned
from lit_unlearn.engine.trial import can_pack
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.memory.size import GIB, num_weights, size_of
from lit_unlearn.memory.tokens import count_tokens
from lit_unlearn.run.early.memory import planned, with_beliefs
from lit_unlearn.run.early.rehearsal import first_rows
from lit_unlearn.run.prepare import Study
from lit_unlearn.strategies.build import chosen
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import LOGPS, Role, union_of_needs


def outlook(study: Study, model: PreTrainedModel, trained: int, phases: Sequence[Planned], unlearns: bool) -> str:
    """A line for each thing that would run; ``trained``: parameters that unlearning would move."""
    config, finetune = study.config, study.config.finetune
    lines = [("model", f"{_model(model)}, {config.trainer.precision}, {_rows_are(model)}")]
    if finetune is not None:
        counts = ", ".join(f"{kind} {len(rows)}" for kind, rows in study.finetuning.items())
        largest = max(map(len, study.finetuning.values()))
        lines.append(("finetune", f"rows: {counts}; {_steps(largest, finetune.batch_size, finetune.max_epochs)}"))
        first = next(iter(study.finetuning.values()))[: finetune.batch_size]
        memory = _memory(config, model, finetune.optim, _all(model), {Role.retain: first}, False)
        lines.append(("  memory", memory))
    if unlearns:
        lines += _unlearning(study, model, trained)
    return _table([*lines, ("phases", ", ".join(phase.title for phase in phases)), ("output_dir", config.output_dir)])


def evaluation_outlook(evaluator: Evaluator, model: PreTrainedModel, config: Config) -> str:
    """The same of a model that is only asked."""
    lines = [("model", f"{_model(model)}, {config.trainer.precision}, {_rows_are(model)}")]
    lines.append(("questions", f"{sum(len(probe.rows) for probe in evaluator.probes)}"))
    known = config.evaluation.retain_model or config.evaluation.retain_records
    return _table([*lines, ("retain model", known or "not known"), ("output_dir", config.output_dir)])


def _table(lines: Sequence[tuple[str, str]]) -> str:
    width = max(len(key) for key, _ in lines)
    return "\n".join([*(f"{key:<{width}}  {text}" for key, text in lines), "\nchecked: nothing was written"])


def _unlearning(study: Study, model: PreTrainedModel, trained: int) -> Iterator[tuple[str, str]]:
    config, trainer, needs = study.config, study.config.trainer, union_of_needs(study.terms)
    rows, size = study.rows, config.data.batch_size
    anchor = len(rows.get(Role.forget) or next(iter(rows.values())))
    counts = ", ".join(f"{role.value} {len(split)}" for role, split in rows.items())
    yield "unlearn", f"rows: {counts}; {_steps(anchor, size, trainer.max_epochs, trainer.max_steps)}"
    yield "  strategy", f"{chosen(config.strategy, trainer.world)}, processes: {trainer.world}"
    yield "  trained", f"{_millions(trained)} parameters with {config.optim.name}, lr {config.optim.lr:g}"
    for name, term in study.terms.items():
        yield f"  {name}", f"{term.weight:g} x {told_objective(term.objective)}"
    for name, fields_of in config.schedules.items():
        yield f"  {name}", ", ".join(f"{key}={value}" for key, value in fields_of.items()) or "as by default"
    yield "  reference", _reference(study)
    if Role.belief in needs.policy:
        beliefs = config.beliefs or BeliefConfig()
        times = f"every {beliefs.every_n_epochs} epochs" if beliefs.every_n_epochs else "once"
        times = f"every {beliefs.every_n_steps} steps" if beliefs.every_n_steps else times
        about = f"{beliefs.num_samples} for each forget prompt, {times}, up to {beliefs.max_new_tokens} tokens"
        yield "  beliefs", f"{about}, temperature {beliefs.temperature:g}"
    questions = sum(len(probe.rows) for probe in study.evaluator.probes)
    often = config.evaluation.every_n_epochs
    yield "  questions", f"{questions} before and after{f', and every {often} epochs' if often else ''}"
    choice = Choice.of(config.evaluation, Path(config.output_dir))
    if choice is not None:
        held = f"; {len(study.held_out)} retain rows held out" if study.held_out else ""
        yield "  saved", f"the step chosen by {choice.rule}{held}"
    yield "  memory", memory_plan(study, model, trained)


def memory_plan(study: Study, model: PreTrainedModel, trained: int) -> str:
    """Of an unlearning step, in words."""
    return _memory(study.config, model, study.config.optim, trained, _step_rows(study), study.plan.resident)


def _step_rows(study: Study) -> dict[Role, list[Encoded]]:
    """Rows of the first step as long as they can be: beliefs are not sampled yet."""
    rows = first_rows(study)
    if study.pairing is not None:
        rows[Role.alternate] = study.pairing.choose(rows[Role.forget], rows[Role.alternate], 0)
    if Role.belief in union_of_needs(study.terms).policy:
        rows[Role.belief] = with_beliefs(rows[Role.forget], study.config.beliefs or BeliefConfig())
    return rows


def _memory(
    config: Config, model: PreTrainedModel, optim: OptimConfig, trained: int, rows: dict[Role, list[Encoded]], two: bool
) -> str:
    """By the closed form that ``python -m lit_unlearn.speed plan=true`` uses, for a Llama's proportions.

    ``rows``: of all ranks in one step.
    """
    own = {role: split[:: config.trainer.world] for role, split in rows.items()}
    size = config.data.micro_batch_size
    size = size if isinstance(size, int) else None
    tokens = count_tokens({role: split[:size] for role, split in own.items()})
    micro = size is not None and size < max(map(len, own.values()))
    lora = config.model.lora
    base = lora.base if lora is not None and optim is config.optim else "full"  # finetuning trains whole models
    parts = planned(config, size_of(model), optim.name, trained, tokens, micro, two, base)
    gib = {name: value for name, value in asdict(parts).items() if name not in ("host", "keeps")}
    named = {name: value for name, value in gib.items() if value >= 5e-3}
    text = f"about {parts.total:.2f} GiB a step ({', '.join(f'{name} {value:.2f}' for name, value in named.items())})"
    text += f", on the host {parts.host:.2f}" if parts.host else ""
    if config.trainer.accelerator != "cpu" and torch.cuda.is_available():
        text += f"; the GPU has {torch.cuda.get_device_properties(0).total_memory / GIB:.1f}"
    return text


def _model(model: PreTrainedModel) -> str:
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters()}
    return f"{type(model).__name__}, {_millions(_all(model))} parameters, {' and '.join(sorted(dtypes))}"


def _all(model: PreTrainedModel) -> int:
    return sum(map(num_weights, model.parameters()))


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M"


def _rows_are(model: PreTrainedModel) -> str:
    return "packed" if can_pack(model) else "padded"


def _steps(rows: int, batch_size: int, epochs: int, max_steps: int = -1) -> str:
    steps = ceil(rows / batch_size) * epochs
    total = steps if max_steps < 0 else min(steps, max_steps)
    return f"{total} steps of {min(rows, batch_size)} rows of each, {epochs} epochs"


def _reference(study: Study) -> str:
    stored = [f"{role.value} {'log-probs' if ask == LOGPS else 'states'}" for role, ask in study.plan.stored.items()]
    where = study.config.model.reference_cache or f"{study.config.output_dir}/reference"
    kinds = [f"{', '.join(stored)} stored in {where}"] if stored else []
    kinds += ["a second model in memory"] if study.plan.resident else []
    if not kinds:
        needed = union_of_needs(study.terms).reference
        kinds = ["the policy without its adapters"] if needed else ["none"]
    return " and ".join(kinds)


def told_objective(objective: object) -> str:
    """The name and fields of an objective, as a config would have them."""
    if not is_dataclass(objective):
        return str(objective)
    told = (f"{field.name}={getattr(objective, field.name)}" for field in fields(objective))
    return f"{type(objective).__name__}({', '.join(told)})"
