"""Runs the body of a causal LM: its final hidden states, the outputs of chosen blocks, and no further than needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel


class _Enough(Exception):
    """Raised inside the forward once the last block asked for has spoken."""


def run_body(
    model: PreTrainedModel, inputs: Mapping[str, object], layers: Iterable[int], final: bool
) -> tuple[Tensor | None, dict[int, Tensor]]:
    """([B T, D] final hidden states if ``final``, [B T, D] outputs of ``layers``), tokens of all rows in order.

    ``inputs``: keyword arguments of the body's forward.

    Raises:
        ValueError: the model has no such block.
    """
    captured: dict[int, Tensor] = {}
    wanted, blocks = sorted(set(layers)), decoder_blocks(model)
    if wanted and not 0 <= wanted[0] <= wanted[-1] < len(blocks):
        raise ValueError(f"layer {wanted} is asked for, but this model has decoder blocks 0 to {len(blocks) - 1}")

    def capture(layer: int):
        def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            captured[layer] = (output if isinstance(output, Tensor) else output[0]).flatten(0, 1)
            if not final and layer == wanted[-1]:
                raise _Enough

        return hook

    handles = [blocks[layer].register_forward_hook(capture(layer)) for layer in wanted]
    try:
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    except _Enough:
        hidden = None
    finally:
        for handle in handles:
            handle.remove()
    return hidden, captured


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks in order, under whichever name the architecture keeps them."""
    for name in ("layers", "h", "blocks"):
        blocks = getattr(model.base_model, name, None)
        if isinstance(blocks, nn.ModuleList):
            return blocks
    raise ValueError(f"{type(model).__name__}: its decoder blocks are in none of the places known (layers, h, blocks)")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each submodule's own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
