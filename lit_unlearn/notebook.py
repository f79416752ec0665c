"""For notebooks and scripts: a whole run, or one training loss without a trainer, on the code path of the command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.command.console import hush
from lit_unlearn.config.checks import check, check_training
from lit_unlearn.config.load import configured
from lit_unlearn.config.schema import Config
from lit_unlearn.config.terms import terms_from
from lit_unlearn.engine.body import evaluating
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.files import write_text
from lit_unlearn.models.load import adopt
from lit_unlearn.reference.plan import reference_states
from lit_unlearn.run.unlearn import Run, finished_run
from lit_unlearn.run.unlearn import unlearn as run
from lit_unlearn.types import Role, Rows, union_of_needs

File = str | Path
QuestionsAndAnswers = Sequence[Mapping[str, str]]


def unlearn(
    model_or_path: PreTrainedModel | File,
    forget: File | QuestionsAndAnswers,
    retain: File | QuestionsAndAnswers | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    conf: str = "own",
    **settings: Any,
) -> Run:
    """What ``python -m lit_unlearn.train conf=own`` does, from Python.

    Args:
        model_or_path: a directory or Hub id, or a model in memory, of which a float32 copy is trained.
        forget: a file of the benchmark ``files``, or its rows, ``[{"question": ..., "answer": ...}]``. Rows are written
            to a file beside the run's directory, ``<output_dir>.rows``, where a resumed run finds them again.
        retain: rows to keep, in the same way; None: none, which needs ``terms={"retain": None}``.
        tokenizer: of a model in memory; None: the one at the place that it came from.
        conf: name or path of the YAML that the settings stand on.
        settings: as the YAML has them: ``trainer={"max_epochs": 2}, output_dir="runs/mine"``.

    Returns:
        The run: ``metrics``, ``model``, ``tokenizer``, ``directory``. One that was finished before is read again.

    Raises:
        UserError: for whatever the user can mend, with the key and what to do.
    """
    hush()
    given = {"forget": forget, "retain": retain}
    files = {name: str(file) for name, file in given.items() if isinstance(file, File)}
    rows = {name: rows for name, rows in given.items() if rows is not None and not isinstance(rows, File)}
    in_memory = None if isinstance(model_or_path, File) else model_or_path
    path = (
        getattr(in_memory, "name_or_path", None) or type(in_memory).__name__ if in_memory is not None else model_or_path
    )
    own = {"model": {"path": str(path)}, "data": {"benchmark": {"name": "files", **files}}}
    config = configured(conf, settings, own)
    if in_memory is not None and config.finetune is not None:
        raise UserError("finetune reads the model it starts from; save the model and give its path, or finetune=None")
    if config.check:
        raise UserError("check=True makes no run to give back: use python -m lit_unlearn.train check=true")
    with _written(rows, config) as written:
        config.data.benchmark |= written
        check(config)
        check_training(config)
        start = None if in_memory is None else adopt(in_memory, tokenizer, config.model)
        return run(config, start) or finished_run(config)


@contextmanager
def _written(given: Mapping[str, QuestionsAndAnswers], config: Config) -> Iterator[dict[str, str]]:
    """The rows as files, which go again if no run was started with them."""
    if given and not config.keeps_text:
        raise UserError("privacy=hashed writes no questions: give forget and retain as files of your own")
    new: list[Path] = []
    files: dict[str, str] = {}
    directory = Path(f"{config.output_dir}.rows")
    try:
        for name, rows in given.items():
            text = _lines(name, rows)
            file = directory / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl"
            if not file.exists():
                directory.mkdir(parents=True, exist_ok=True)
                new.append(file)
                write_text(file, text)
            files[name] = str(file)
        yield files
    except BaseException:
        started = Path(config.output_dir) / "config.yaml"
        settings = started.read_text(encoding="utf-8") if started.is_file() else ""
        for file in new:
            if file.name not in settings:
                file.unlink(missing_ok=True)
        with suppress(OSError):  # it holds others, or was never made
            directory.rmdir()
        raise


def _lines(name: str, rows: QuestionsAndAnswers) -> str:
    if isinstance(rows, Mapping) or not isinstance(rows, Sequence):
        raise UserError(
            f"{name} is of type {type(rows).__name__}; give a file, or a list of dicts with a question and an answer"
        )
    try:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except TypeError as error:
        raise UserError(f"{name}: {error}; questions and answers are texts") from error


def step_loss(
    policy: nn.Module,
    reference: nn.Module | None,
    batch: Mapping[str, Mapping[str, Tensor]],
    terms: Mapping[str, Mapping[str, Any] | None],
) -> dict[str, Any]:
    """The weighted sum of the terms on one batch.

    Args:
        policy: a Hugging Face causal LM, in the mode the caller has set (training uses ``train()``); one with
            adapters of peft inside its layers counts as well.
        reference: its frozen start, scored in evaluation mode; None where no term reads it.
        batch: role -> ``{input_ids, attention_mask, labels}``, each [B, T]; labels are not shifted, -100 on prompt
            and padding. ``forget`` and ``alternate`` pair row by row.
        terms: as YAML has them: name -> ``{weight, objective: {name, ...}}``.

    Returns:
        ``{"loss": scalar with gradient, "terms": {name: float}}``; the terms' values are unweighted.

    Raises:
        UserError: an unknown objective or field, a role that is missing, a reference that is needed and not given, a
            model that cannot be scored rightly.
    """
    policy, reference = _plain(policy), None if reference is None else _plain(reference)
    built = terms_from(terms)
    needs = union_of_needs(built)
    rows = {_role(role): _rows(role, tensors) for role, tensors in batch.items()}
    missing = sorted(role for role in {*needs.policy, *needs.reference} if role not in rows)
    if missing:
        raise UserError(f"the terms read the roles {', '.join(missing)}, which the batch does not hold")
    if needs.reference and reference is None:
        raise UserError(f"the terms read the reference on {', '.join(sorted(needs.reference))}; give one")
    start = None if reference is None else ScoringEngine(reference)
    with evaluating(start) if start is not None else nullcontext():
        states = reference_states(rows, needs.reference, start)
    try:
        step = ScoringEngine(policy)(rows, built, states)
    except ValueError as error:  # a layer the model does not have, roles that do not pair
        raise UserError(str(error)) from error
    return {"loss": step.loss, "terms": step.losses}


def _plain(model: nn.Module) -> PreTrainedModel:
    """The causal LM inside, where peft has put its layers into it."""
    inner: Any = model
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        inner = inner.get_base_model()
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise UserError("a prompt that is learned stands before every row, which is not supported; use adapters")
    if not isinstance(inner, PreTrainedModel):
        raise UserError(f"{type(model).__name__} is no causal LM of transformers; give the model inside")
    return inner


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError as error:
        raise UserError(f"the batch has no role {name!r}; choose among {', '.join(Role)}") from error


def _rows(role: str, tensors: Mapping[str, Tensor]) -> Rows:
    missing = {"input_ids", "attention_mask", "labels"} - tensors.keys()
    if missing:
        raise UserError(f"the batch's {role} rows lack {', '.join(sorted(missing))}")
    labels = tensors["labels"]
    ids = torch.arange(len(labels), device=labels.device)
    return Rows(tensors["input_ids"], tensors["attention_mask"], labels, ids)
