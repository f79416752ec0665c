"""Attention that follows a pattern of its own: one name under which any model that takes part can be run packed.

A pattern travels with the call, as the keyword ``pattern`` of the body's forward; without one the model attends as
always. So one model serves packed rows, a decoding cache and the library's own generation, also when a layer is run
again in the backward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lit_unlearn.engine.body import body_of

NAME = "lit_unlearn"
UNHEARD = {"position_ids", "use_cache"}
"""What layers hand to the attention and no attention minds."""


class Pattern(Protocol):
    """Who attends to whom."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None
    ) -> Tensor:
        """[B, H, T, d], [B, H_kv, T, d] twice -> [B, T, H, d]; ``module`` is the attention of one layer.

        Who needs no layer must not read its number, or a compiled block would be compiled for every layer.
        """
        ...


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    pattern: Pattern | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer of a model that was given to ``take_part``.

    Raises:
        ValueError: the layer asks for more than a pattern does, a window or a soft cap of its scores, say.
    """
    if pattern is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    asked = sorted(name for name, value in kwargs.items() if value is not None and value is not False)
    if not UNHEARD.issuperset(asked):
        raise ValueError(f"packed attention has no {', '.join(asked)}")
    # Not compiled: the shapes of rows differ from batch to batch, the rest of a block sees packed tokens only.
    attend = cast(Callable[..., Tensor], torch.compiler.disable(pattern.attend))
    return attend(module, query, key, value, dropout, scaling), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def take_part(model: PreTrainedModel) -> bool:
    """Let the model's body follow patterns; False, and nothing changed, where its kind of attention cannot.

    Windows are looked for in the config since they may be longer than what is tried. Whether the model passes patterns
    on to its layers, and needs no more than they give, is not known from its class: ``trial.can_pack`` tries it.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == NAME:
        return True
    windows = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    positions = "position_ids" in inspect.signature(type(body_of(model)[1]).forward).parameters
    possible = model._supports_attention_backend and positions and not windows
    if config._attn_implementation != "sdpa" or not possible or kinds != {"full_attention"}:
        return False
    model.set_attn_implementation(NAME)
    return True


def inputs_of(input_ids: Tensor, position_ids: Tensor, pattern: Pattern) -> Mapping[str, object]:
    """Keyword arguments of a body's forward that follows a pattern."""
    ready = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)  # a mask made already: none is built
    return {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": ready, "pattern": pattern}
