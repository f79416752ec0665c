"""Use of a model that leaves no trace, and faults told with the place they come from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from lit_unlearn.errors import UserError
from lit_unlearn.training.checkpoints import random_states, restore


@contextmanager
def told(where: str) -> Iterator[None]:
    """Whatever fails inside is one line for the user that begins with ``where``, unless it says itself what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # anything that takes part in a run, the user's own files included
        lines = (line.strip() for line in str(error).splitlines())
        reason = next((line for line in lines if line), "no message")
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {kind}{reason}") from error


@contextmanager
def untouched(model: PreTrainedModel, moved: bool) -> Iterator[None]:
    """Afterwards weights, buffers, submodules, modes and random states are what they were, bit by bit.

    Inside, weights and buffers are copies, which may be cast, frozen or wrapped in adapters.

    Args:
        model: of a size that the host holds.
        moved: whether it is carried to another device inside, which copies its weights anyway.
    """
    states, device = random_states(), torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    weights = [(weight, weight.data, weight.grad, weight.requires_grad) for weight in model.parameters()]
    parts = [(module, {name: _own(value) for name, value in vars(module).items()}) for module in model.modules()]
    try:
        for weight, data, _, _ in weights:
            weight.grad, weight.data = None, data if moved else data.clone()
        for module, _ in parts:
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, attributes in parts:
            vars(module).clear()
            vars(module).update(attributes)
        for weight, data, grad, learns in weights:
            weight.grad = None  # else it would have to fit the data
            weight.data = data
            weight.grad = grad
            weight.requires_grad_(learns)
        restore(states, device)


def _own(value: object) -> object:
    """Dictionaries of parameters, children and hooks change in place."""
    return copy.copy(value) if isinstance(value, dict) else value
