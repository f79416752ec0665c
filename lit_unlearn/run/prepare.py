"""What a run reads before it starts: everything that can be wrong is told before the first file is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.benchmarks import BENCHMARKS
from lit_unlearn.benchmarks.base import Benchmark
from lit_unlearn.benchmarks.tofu_rows import spread
from lit_unlearn.callbacks.schedules import SCHEDULES
from lit_unlearn.callbacks.schedules.schedule import Schedule
from lit_unlearn.callbacks.settings import SqueezeConfig
from lit_unlearn.config.build import build
from lit_unlearn.config.schema import Config
from lit_unlearn.config.terms import build_terms
from lit_unlearn.data.alternates import Pairing, alternates_of
from lit_unlearn.data.tokenize import Encoded, Encoder
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.choice.held_out import hold_out
from lit_unlearn.evaluation.choice.names import check_names
from lit_unlearn.evaluation.choice.split import Split
from lit_unlearn.evaluation.collect import Asking
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.evaluation.metrics import METRICS
from lit_unlearn.evaluation.records import read_records
from lit_unlearn.models.adapters.lora import check_lora_installed
from lit_unlearn.models.adapters.nf4 import check_nf4_installed
from lit_unlearn.models.load import check_path, load_tokenizer, named_ends
from lit_unlearn.objectives.nll import NLL
from lit_unlearn.recording.export.hub import check_hub
from lit_unlearn.reference.plan import ReferencePlan, plan_reference
from lit_unlearn.training.optimizers import check_installed
from lit_unlearn.types import Role, Term, Terms, union_of_needs

KINDS = ("target", "retain")
"""Of the models unlearning is judged between."""
_TELLING = 8
"""Characters of a text that is not in the settings by chance."""


@dataclass(frozen=True)
class Study:
    """All that is known before a model is trained or a file written."""

    config: Config
    terms: Terms
    plan: ReferencePlan
    rows: dict[Role, list[Encoded]]
    evaluator: Evaluator
    schedules: list[Schedule]
    pairing: Pairing | None = None
    """Of the alternate rows with the forget rows, where a term reads them."""
    finetuning: Mapping[str, list[Encoded]] = field(default_factory=dict)
    """Rows by the kind of model that is made of them; empty where none is made."""
    control: Sequence[Encoded] = ()
    """Retain rows that the squeezing probe watches beside its forget rows."""
    held_out: Sequence[Encoded] = ()
    """Retain rows that no term is trained on, for ``evaluation.disruption``."""


def prepare(config: Config, benchmark: Benchmark, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Study:
    """Read and tokenize every split and probe the run will need.

    Raises:
        UserError: a fault in the data, or terms that do not go with the config.
    """
    terms = build_terms(config)
    schedules = build_schedules(config, terms)
    needs = union_of_needs(terms)
    plan = plan_reference(needs, config.model.reference, config.model.lora is not None)
    encoder = build_encoder(config, tokenizer, policy)
    answers = {Role.belief, Role.alternate} & set(needs.policy)  # to the forget rows' questions
    reads = set(needs.policy) - answers | ({Role.forget} if answers else set())
    rows = {role: encoder.encode(benchmark.train_split(role), f"{role} split") for role in Role if role in reads}
    kinds = KINDS if config.finetune else ()
    finetuning = {kind: encoder.encode(benchmark.finetune_split(kind), f"{kind} model's split") for kind in kinds}
    control = () if config.squeeze is None else _control(config.squeeze, rows, benchmark, encoder)
    sizes = config.trainer.world, config.data.batch_size
    held_out = hold_out(config.evaluation.disruption, rows, benchmark, encoder, config.seed, *sizes)
    smallest = min(map(len, [*rows.values(), *finetuning.values()]))
    if smallest < config.trainer.world:
        raise UserError(
            f"a split has {smallest} rows, too few for {config.trainer.world} processes; lower trainer.devices"
        )
    pairing = None
    if Role.alternate in answers:
        forget = benchmark.train_split(Role.forget)
        alternates, pairing = alternates_of(forget, config.data.alternates, benchmark, config.seed)
        rows[Role.alternate] = encoder.encode(alternates, "alternate answers")
    evaluator = build_evaluator(config, benchmark, encoder)
    return Study(config, terms, plan, rows, evaluator, schedules, pairing, finetuning, control, held_out)


def _control(
    squeeze: SqueezeConfig, rows: Mapping[Role, Sequence[Encoded]], benchmark: Benchmark, encoder: Encoder
) -> Sequence[Encoded]:
    if not squeeze.control:
        return ()
    examples = benchmark.train_split(Role.retain)
    chosen = spread(len(examples), squeeze.num_prompts)
    if Role.retain in rows:
        return [rows[Role.retain][index] for index in chosen]
    return encoder.encode([examples[index] for index in chosen], "retain split")


def finetuning_terms() -> Terms:
    """What the models are finetuned with, on rows in the retain rows' place."""
    return {"finetune": Term(1.0, NLL(Role.retain))}


def check_extras(config: Config) -> None:
    """Raises UserError for a package, a device or a token that is not there, before a model is read."""
    for optim in [config.optim] + ([config.finetune.optim] if config.finetune else []):
        check_installed(optim.name, config.trainer.accelerator)
    if config.model.lora is not None:
        check_lora_installed()
        if config.model.lora.base == "nf4":
            check_nf4_installed()
    if config.export.push_to_hub is not None:
        check_hub(config.export.push_to_hub)


def load_benchmark(config: Config) -> Benchmark:
    """The object behind ``config.data.benchmark``.

    Raises:
        UserError: settings hold text of a forget row, as those of a benchmark from outside may, and go to W&B.
    """
    benchmark = build(config.data.benchmark, BENCHMARKS, "data.benchmark")
    if not config.uploads_text:
        settings = "\n".join(_texts(asdict(config)))
        for row in benchmark.train_split(Role.forget):
            if any(len(text) >= _TELLING and text in settings for text in (row.prompt, row.response)):
                raise UserError(
                    f"the settings hold text of forget row {row.id}, and privacy={config.privacy} keeps it out of what "
                    "is written of them: let data.benchmark name a file, or set privacy=full"
                )
    return benchmark


def _texts(settings: object) -> Iterator[str]:
    if isinstance(settings, Mapping):
        settings = [*settings, *settings.values()]
    if isinstance(settings, list | tuple):
        for value in settings:
            yield from _texts(value)
    elif isinstance(settings, str):
        yield settings


def corpus(config: Config, benchmark: Benchmark) -> list[str]:
    """The text a tiny model's tokenizer is trained on, whose words its files will hold; no other model needs any."""
    if config.model.path is not None or config.model.name != "tiny":
        return []
    kind = "target" if config.keeps_text else "retain"
    return [text for row in benchmark.finetune_split(kind) for text in (row.prompt, row.response)]


def build_encoder(config: Config, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Encoder:
    known = model.config.get_text_config().vocab_size
    return Encoder(tokenizer, config.data.max_length, config.data.prompt, named_ends(model), known)


def build_evaluator(config: Config, benchmark: Benchmark, encoder: Encoder) -> Evaluator:
    chosen = {name: {} for name in benchmark.metrics} | config.evaluation.metrics
    metrics = {name: build({"name": name, **fields}, METRICS, "evaluation.metrics") for name, fields in chosen.items()}
    asking = Asking(config.evaluation.max_new_tokens, config.evaluation.batch_size, config.keeps_text)
    evaluator = Evaluator.of(benchmark, encoder, metrics, asking)
    if config.evaluation.selection is not None:
        evaluator.split = Split.of(evaluator.probes, config.evaluation.selection, config.seed)
    recorded = {probe.name for probe in evaluator.probes if probe.rows}
    for name, metric in metrics.items():
        if missing := sorted(metric.reads - recorded):
            raise UserError(
                f"evaluation.metrics.{name} reads the probe {missing[0]}, which data.benchmark="
                f"{config.data.benchmark.get('name')} does not ask here; leave the metric out"
            )
    if config.evaluation.retain_records is not None:
        evaluator.know_retain_model(read_records(Path(config.evaluation.retain_records)))
    if config.evaluation.original_records is not None:
        evaluator.check_asked(read_records(Path(config.evaluation.original_records)), "original")
    if config.evaluation.retain_model is not None:
        _check_retain_model(config, evaluator, config.evaluation.retain_model)
    retain = config.finetune or config.evaluation.retain_model or config.evaluation.retain_records
    check_names(config.evaluation, evaluator.probes, metrics, retain is not None)
    return evaluator


def _check_retain_model(config: Config, evaluator: Evaluator, path: str) -> None:
    """Raises UserError for what can be known of it without its weights, which are read when it is asked."""
    check_path(path, config.model.trust_remote_code)
    tokenizer = load_tokenizer(path, config.model)
    evaluator.in_tokens_of(Encoder(tokenizer, config.data.max_length, config.data.prompt))


def build_schedules(config: Config, terms: Terms) -> list[Schedule]:
    """The callbacks behind ``config.schedules``.

    Raises:
        UserError: one names a term or role this run does not have, would do nothing, or moves what another moves.
    """
    schedules: dict[str, Schedule] = {}
    for name, fields in config.schedules.items():
        schedule = build({"name": name, **fields}, SCHEDULES, f"schedules.{name}")
        if not isinstance(schedule, Schedule):
            raise UserError(f"schedules.{name} must be a lit_unlearn.callbacks.schedules.schedule.Schedule")
        try:
            schedule.check(terms, config.trainer.max_epochs)
        except ValueError as error:
            raise UserError(f"schedules.{name}: {error}") from error
        if schedule.moves in schedules:
            raise UserError(f"schedules.{name}: another schedule already moves {schedule.moves}; keep one of them")
        schedules[schedule.moves] = schedule
    return list(schedules.values())
