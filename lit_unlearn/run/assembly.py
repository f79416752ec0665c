"""Puts a run together from its config: everything that can be wrong is read before the first file is written."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.benchmarks import BENCHMARKS
from lit_unlearn.benchmarks.base import Benchmark
from lit_unlearn.callbacks.belief_sampler import BeliefSampler
from lit_unlearn.callbacks.evaluation import Evaluation
from lit_unlearn.callbacks.reference_cache import ReferenceCache
from lit_unlearn.callbacks.schedules import SCHEDULES
from lit_unlearn.callbacks.schedules.schedule import Schedule
from lit_unlearn.callbacks.settings import BeliefConfig
from lit_unlearn.callbacks.squeeze_probe import SqueezeProbe
from lit_unlearn.callbacks.throughput import Throughput
from lit_unlearn.config.schema import Config, build, build_terms
from lit_unlearn.data.alternates import Pairing, alternates_of
from lit_unlearn.data.beliefs import BeliefStore
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import Encoded, Encoder
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.collect import Asking
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.evaluation.metrics import METRICS
from lit_unlearn.evaluation.records import read_records
from lit_unlearn.models.load import check_path, load_pretrained, stop_ids
from lit_unlearn.models.lora import add_adapters, check_lora_installed
from lit_unlearn.recording.environment import environment
from lit_unlearn.recording.history import History, wandb_logger
from lit_unlearn.recording.outputs import write_json, write_text
from lit_unlearn.reference.plan import ReferencePlan, plan_reference
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.optim import freeze_others
from lit_unlearn.training.optimizers import check_installed, hold_weights
from lit_unlearn.types import Role, Terms, union_of_needs


def load_benchmark(config: Config) -> Benchmark:
    return build(config.data.benchmark, BENCHMARKS, "data.benchmark")


def corpus(benchmark: Benchmark) -> list[str]:
    """The text a tiny model's tokenizer is trained on."""
    return [text for row in benchmark.finetune_split("target") for text in (row.prompt, row.response)]


def build_encoder(config: Config, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    return Encoder(tokenizer, config.data.max_length, config.data.prompt)


def build_evaluator(config: Config, benchmark: Benchmark, encoder: Encoder, stops: Sequence[int]) -> Evaluator:
    chosen = {name: {} for name in benchmark.metrics} | config.evaluation.metrics
    metrics = {name: build({"name": name, **fields}, METRICS, "evaluation.metrics") for name, fields in chosen.items()}
    asking = Asking(stops, config.evaluation.max_new_tokens, config.evaluation.batch_size)
    evaluator = Evaluator.of(benchmark, encoder, metrics, asking)
    if config.evaluation.retain_records is not None:
        evaluator.know_retain_model(read_records(Path(config.evaluation.retain_records)))
    if config.evaluation.retain_model is not None:
        check_path(config.evaluation.retain_model, config.model.trust_remote_code)
    return evaluator


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


def retain_model_loader(config: Config, path: str | None):
    """A function that loads the retain model's engine, or None where none is named."""
    if path is None:
        return None
    return lambda: ScoringEngine(load_pretrained(path, config.model)[0], config.model.logits_mib)


def check_resumed(run_dir: Path, config: Config) -> None:
    """What a run has cached, sampled and recorded belongs to the settings it was started with.

    Raises:
        UserError: the model, the data, the terms or the seed are others now.
    """
    if not (run_dir / "config.yaml").is_file():
        return  # nothing was started there, which open_run will say
    stored, present = OmegaConf.load(run_dir / "config.yaml"), OmegaConf.create(OmegaConf.to_yaml(asdict(config)))
    before, now = OmegaConf.to_container(stored), OmegaConf.to_container(present)
    assert isinstance(before, dict)
    assert isinstance(now, dict)
    for section in ("model", "data", "terms", "beliefs", "finetune", "squeeze", "optim", "seed"):
        if now[section] != before.get(section):
            raise UserError(
                f"resume=true with other settings in {section} than output_dir={config.output_dir} was started with; "
                f"leave the overrides as they were (see {run_dir / 'config.yaml'}) or start another run"
            )


@rank_zero_only
def write_start(run_dir: Path, config: Config) -> None:
    """What was asked for, and where it ran."""
    write_text(run_dir / "config.yaml", OmegaConf.to_yaml(asdict(replace(config, resume=False, overwrite=False))))
    write_json(run_dir / "environment.json", environment())


def check_extras(config: Config) -> None:
    """Raises UserError for a package or a device that the optimizers or the adapters need, before a model is read."""
    for optim in [config.optim] + ([config.finetune.optim] if config.finetune else []):
        check_installed(optim.name, config.trainer.accelerator)
    if config.model.lora is not None:
        check_lora_installed()


def build_loggers(config: Config, run_dir: Path) -> list[Logger]:
    history = History(run_dir)
    online = wandb_logger(run_dir, config.logging.project, run_dir.name, config.logging.mode, asdict(config))
    return [history] if online is None else [history, online]


@dataclass(frozen=True)
class Study:
    """All that is known before a model is trained or a file written."""

    config: Config
    terms: Terms
    plan: ReferencePlan
    rows: dict[Role, list[Encoded]]
    evaluator: Evaluator
    stops: list[int]
    schedules: list[Schedule]
    pairing: Pairing | None = None
    """Of the alternate rows with the forget rows, where a term reads them."""


def prepare(config: Config, benchmark: Benchmark, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Study:
    """Read and tokenize every split and probe the run will need.

    Raises:
        UserError: a fault in the data, or terms that do not go with the config.
    """
    terms = build_terms(config)
    schedules = build_schedules(config, terms)
    needs = union_of_needs(terms)
    plan = plan_reference(needs, config.model.reference, config.model.lora is not None)
    encoder = build_encoder(config, tokenizer)
    answers = {Role.belief, Role.alternate} & set(needs.policy)  # to the forget rows' questions
    reads = set(needs.policy) - answers | ({Role.forget} if answers else set())
    rows = {role: encoder.encode(benchmark.train_split(role), f"{role} split") for role in Role if role in reads}
    smallest = min(map(len, rows.values()))
    if smallest < config.trainer.devices:
        raise UserError(f"a split has {smallest} rows, too few for trainer.devices={config.trainer.devices}")
    pairing = None
    if Role.alternate in answers:
        forget = benchmark.train_split(Role.forget)
        alternates, pairing = alternates_of(forget, config.data.alternates, benchmark, config.seed)
        rows[Role.alternate] = encoder.encode(alternates, "alternate answers")
    freeze_others(policy, config.optim.trainable)  # a faulty pattern is told before anything is written
    stops = stop_ids(policy, tokenizer)
    evaluator = build_evaluator(config, benchmark, encoder, stops)
    return Study(config, terms, plan, rows, evaluator, stops, schedules, pairing)


log = logging.getLogger(__name__)
_SHAPES = 256
"""Packed tokens are filled up to multiples of this under ``model.compile``."""


def assemble(
    study: Study, policy: PreTrainedModel, retain_model: str | None, run_dir: Path
) -> tuple[UnlearnModule, UnlearnData, Sequence[L.Callback], Evaluation]:
    """Everything a fit needs; callbacks in the order in which they meet the untouched policy."""
    config, rows, stops = study.config, study.rows, study.stops
    store = None
    beliefs = config.beliefs or BeliefConfig()
    if Role.belief in union_of_needs(study.terms).policy:
        store = BeliefStore(beliefs.per_step, config.seed)
    data = UnlearnData(rows, config.data.batch_size, config.seed, store, study.pairing)
    hold_weights(policy, config.optim.name)
    reference = ScoringEngine(copy.deepcopy(policy), config.model.logits_mib) if study.plan.resident else None
    if config.model.lora is not None:
        add_adapters(policy, config.model.lora)
    freeze_others(policy, config.optim.trainable)
    engine = ScoringEngine(policy, config.model.logits_mib, _SHAPES if config.model.compile else 1)
    if not engine.packs:
        kind = type(policy).__name__
        log.warning("%s with model.attention=%s cannot run packed rows: they are padded", kind, config.model.attention)
    module = UnlearnModule(engine, study.terms, config.optim, reference)

    load_retain_model = retain_model_loader(config, retain_model)
    evaluation = Evaluation(study.evaluator, run_dir, config.evaluation.every_n_epochs, load_retain_model)
    callbacks: list[L.Callback] = [Throughput(), evaluation]
    if study.plan.stored:
        directory = Path(config.model.reference_cache or run_dir / "reference")
        callbacks.append(ReferenceCache(data, study.plan.stored, config.evaluation.batch_size, directory, engine))
    if config.squeeze is not None:
        callbacks.append(SqueezeProbe(rows[Role.forget], config.squeeze, stops, config.seed))
    if store is not None:
        callbacks.append(BeliefSampler(store, data, beliefs, stops, config.seed))
    return module, data, [*callbacks, *study.schedules], evaluation
