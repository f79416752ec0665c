"""Runs the body of a causal LM: its final hidden states, the outputs of chosen blocks, and no further than needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_unlearn.errors import UserError


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
    wanted = sorted(set(layers))
    blocks = decoder_blocks(model) if wanted else ()
    if wanted and not 0 <= wanted[0] <= wanted[-1] < len(blocks):
        raise ValueError(
            f"layer {', '.join(map(str, wanted))} is asked for, but this model has decoder blocks 0 to "
            f"{len(blocks) - 1}: set the layer to one of them"
        )

    def capture(layer: int):
        def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            captured[layer] = (output if isinstance(output, Tensor) else output[0]).flatten(0, 1)
            if not final and layer == wanted[-1]:
                raise _Enough

        return hook

    handles = [blocks[layer].register_forward_hook(capture(layer)) for layer in wanted]
    try:
        hidden = body_of(model)[1](**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    except _Enough:
        hidden = None
    finally:
        for handle in handles:
            handle.remove()
    return hidden, captured


def body_of(model: PreTrainedModel) -> tuple[str, nn.Module]:
    """The child that turns tokens into hidden states, and its name; some classes have it under another than they say.

    Raises:
        UserError: the model has no such child.
    """
    children, tokens = dict(model.named_children()), model.get_input_embeddings()
    if model.base_model_prefix in children:
        return model.base_model_prefix, children[model.base_model_prefix]
    for name, child in children.items():
        if any(module is tokens for module in child.modules()):
            return name, child
    raise UserError(f"{type(model).__name__} has no body apart from its vocabulary head, so it cannot be scored")


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks in order, under whichever name and however deep the architecture keeps them.

    Raises:
        UserError: it is not known which of its lists of modules they are.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder = model.get_decoder()
    _, body = body_of(model)
    lists = _outermost_lists(decoder if decoder is not model else body) or _outermost_lists(body)
    fitting = lists if len(lists) == 1 else [found for found in lists if len(found) == count]
    if fitting:
        return fitting[0]
    raise UserError(f"{type(model).__name__}: none of its {len(lists)} lists of modules holds its {count} blocks")


def _outermost_lists(module: nn.Module) -> list[nn.ModuleList]:
    if isinstance(module, nn.ModuleList):
        return [module]
    return [found for child in module.children() for found in _outermost_lists(child)]


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
