"""One training loss without a trainer, for notebooks and checks: the same code path as training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_unlearn.config.terms import terms_from
from lit_unlearn.engine.body import evaluating
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.reference.plan import reference_states
from lit_unlearn.types import Role, Rows, union_of_needs


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
