"""The way into a run: read, check and try out everything, then take the run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.benchmarks.base import Benchmark
from lit_unlearn.config.schema import Config
from lit_unlearn.display.phases import Planned
from lit_unlearn.models.adapters.nf4 import quantize_base
from lit_unlearn.models.load import load_model
from lit_unlearn.recording.outputs import check_run_dir, open_run
from lit_unlearn.run.early.limits import check_limits
from lit_unlearn.run.early.outlook import outlook
from lit_unlearn.run.early.rehearsal import rehearse
from lit_unlearn.run.plan import plan_finetuning, plan_run
from lit_unlearn.run.prepare import Study, check_extras, corpus, load_benchmark, prepare
from lit_unlearn.run.resume import (
    check_inputs,
    check_ranks,
    check_resumed,
    dated,
    inputs_of,
    settled,
    tell_finished,
    write_start,
)
from lit_unlearn.training.signals import heeding
from lit_unlearn.training.trainer import has_begun_together, prepare_device, release

Result = TypeVar("Result")
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass
class Start:
    """What a run knows when it begins to write."""

    study: Study
    benchmark: Benchmark
    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel | None
    """What unlearning starts from; None where it is still to be made, by ``finetune``."""
    inputs: Mapping[str, str]
    """Digests of what was read, as of ``inputs_of``."""

    @property
    def config(self) -> Config:
        return self.study.config

    def take_policy(self) -> PreTrainedModel:
        """The policy, which is the caller's from now on: nothing here keeps it alive."""
        policy, self.policy = self.policy, None
        assert policy is not None
        return policy


def start(
    config: Config,
    is_finished: Callable[[Path], bool],
    carry_out: Callable[[Start, Path], Result],
    unlearns: bool = True,
    loaded: Loaded | None = None,
) -> Result | None:
    """What ``carry_out`` makes of the start and the run directory; None where there is nothing to do or to be done.

    Everything that can be wrong is told before the first file is written; under ``config.check`` that is all, and what
    would run is printed. A signal to end is heeded meanwhile.

    Args:
        config: as the command line gave it.
        is_finished: whether the directory of a run that is resumed needs no more.
        carry_out: all that writes into the run directory, which is this run's alone for so long.
        unlearns: False where only models are finetuned.
        loaded: the model to start from, where it is in memory already.
    """
    with heeding(requeues=bool(config.resume), launched=rank_zero_only.rank != 0 and not has_begun_together()):
        return _start(dated(settled(config)), is_finished, carry_out, unlearns, loaded)


def _start(
    config: Config,
    is_finished: Callable[[Path], bool],
    carry_out: Callable[[Start, Path], Result],
    unlearns: bool,
    loaded: Loaded | None,
) -> Result | None:
    resumes = config.resume is True
    if resumes and not config.overwrite:
        check_resumed(Path(config.output_dir), config)
        if is_finished(Path(config.output_dir)):
            tell_finished(config.output_dir)
            return None
    check_run_dir(config.output_dir, resumes, config.overwrite)
    begun = _read(config, unlearns, loaded)
    if resumes:
        check_inputs(Path(config.output_dir), begun.inputs)
        check_ranks(Path(config.output_dir), begun.study)
    if config.check:
        return None
    with open_run(config.output_dir, resumes, config.overwrite) as run_dir:
        write_start(run_dir, config, begun.inputs)
        return carry_out(begun, run_dir)


def _phases(study: Study, benchmark: Benchmark, unlearns: bool) -> Sequence[Planned]:
    config, directory = study.config, Path(study.config.output_dir)
    if unlearns or config.finetune is None:
        return plan_run(study, benchmark, directory)
    return plan_finetuning(config.finetune, benchmark, directory)


def _read(config: Config, unlearns: bool, loaded: Loaded | None) -> Start:
    prepare_device(config.trainer)
    check_extras(config)
    benchmark = load_benchmark(config)
    L.seed_everything(config.seed, verbose=False)
    policy, tokenizer = loaded or load_model(config.model, corpus(config, benchmark), config.strategy.cuts_weights)
    study = prepare(config, benchmark, policy, tokenizer)
    check_limits(study, policy)
    inputs = inputs_of(study, policy)
    if config.finetune is None:  # else it is the target model that is quantized
        quantize_base(policy, config.model.lora)
    if rank_zero_only.rank == 0 or has_begun_together():  # else the first has done it for all
        trained = rehearse(study, policy, unlearns)
        if config.check and rank_zero_only.rank == 0:
            print(outlook(study, policy, trained, _phases(study, benchmark, unlearns), unlearns))
    begun = Start(study, benchmark, tokenizer, None if config.finetune else policy, inputs)
    del policy, loaded  # of finetuning and unlearning each loads its own
    release()
    return begun
