"""What a model cannot take: positions it has not learned; and where files cannot go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_unlearn.callbacks.settings import BeliefConfig
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.body import body_of
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.recording.outputs import check_directory
from lit_unlearn.run.prepare import Study
from lit_unlearn.types import Role, union_of_needs

_OFFSET = 2
"""Rows that some tables of positions have before the first."""


def check_limits(study: Study, model: PreTrainedModel) -> None:
    """Raises UserError for rows, answers to come or a reference that the model or the machine has no place for."""
    config = study.config
    splits = {f"{role.value} split": rows for role, rows in study.rows.items()}
    splits |= {f"{kind} model's split": rows for kind, rows in study.finetuning.items()}
    splits |= {"retain split": [*study.control, *study.held_out]} if Role.retain not in study.rows else {}
    check_lengths(splits, study.evaluator, model)
    answers: dict[str, int] = {}
    if Role.belief in union_of_needs(study.terms).policy:
        answers["beliefs"] = (config.beliefs or BeliefConfig()).max_new_tokens
    if config.squeeze is not None:
        answers["squeeze"] = config.squeeze.max_new_tokens
    for name, length in answers.items():
        asked = [*study.rows[Role.forget], *(study.control if name == "squeeze" else ())]
        check_answers(asked, length, f"{name}.max_new_tokens", model)
    if study.plan.stored and config.model.reference_cache is not None:
        check_directory(Path(config.model.reference_cache), "model.reference_cache")


def check_lengths(splits: dict[str, list[Encoded]], evaluator: Evaluator, model: PreTrainedModel) -> None:
    """Raises UserError for rows, or answers of the evaluation, that go beyond the positions a model has learned."""
    known = learned_positions(model)
    if known is None:
        return
    for name, rows in {**splits, **{probe.name: list(probe.rows) for probe in evaluator.probes}}.items():
        for row in rows:
            if (length := len(row.prompt) + len(row.answer)) > known:
                raise UserError(
                    f"{name}, row {row.id}: {length} tokens, but {type(model).__name__} has learned {known} positions; "
                    f"set data.max_length={known} or less"
                )
    spoken = [row for probe in evaluator.probes if probe.generate for row in probe.rows]
    check_answers(spoken, evaluator.asking.max_new_tokens, "evaluation.max_new_tokens", model)


def check_answers(rows: Sequence[Encoded], max_new_tokens: int, key: str, model: PreTrainedModel) -> None:
    """Raises UserError where an answer to the longest prompt could go beyond the positions a model has learned."""
    known, longest = learned_positions(model), max((len(row.prompt) for row in rows), default=0)
    if known is not None and longest + max_new_tokens > known:
        raise UserError(
            f"{key}={max_new_tokens}: behind a prompt of {longest} tokens an answer could reach position "
            f"{longest + max_new_tokens}, and {type(model).__name__} has learned {known}; set {key}="
            f"{max(known - longest, 0)} or less"
        )


def learned_positions(model: PreTrainedModel) -> int | None:
    """How many positions a model has a table for, learned or computed once; None: it has none, as with rotations."""
    named = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(named, int):
        return None
    tables = _tables(body_of(model)[1], model.get_input_embeddings())
    return named if any(named <= len(table) <= named + _OFFSET for table in tables) else None


def _tables(body: nn.Module, tokens: object) -> Iterator[Tensor]:
    """Matrices that are looked up by a number other than a token's."""
    for module in body.modules():
        if isinstance(module, nn.Embedding) and module is not tokens:
            yield module.weight
        yield from (buffer for buffer in module.buffers(recurse=False) if buffer.dim() == 2)
