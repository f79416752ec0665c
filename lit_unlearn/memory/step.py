"""The memory of one step on one GPU."""

from __future__ import annotations

from dataclasses import replace

from lit_unlearn.memory.presets import PRESETS, share
from lit_unlearn.memory.size import GIB, LOGIT_COPIES, ModelSize, Parts
from lit_unlearn.memory.tokens import Tokens

NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""A weight, with its share of the scales: one byte for 64, and one float32 for 256 of those."""


def step_parts(
    size: ModelSize,
    preset: str,
    tokens: Tokens,
    *,
    trained: int | None = None,
    strategy: str = "ddp",
    num_gpus: int = 1,
    autocast: bool = True,
    checkpointing: bool = False,
    resident: bool = False,
    logits_mib: int = 256,
    plain: bool = False,
) -> Parts:
    """GiB on one of ``num_gpus``. A cached reference is a few KB and on the host.

    Args:
        size: of the model without adapters.
        preset: a name in ``PRESETS``, among them the values of ``optim.name``.
        tokens: of the rows that one GPU has in one forward.
        trained: parameters that get a gradient; adapters are there beside the model's own. None: all.
        strategy: as ``share`` takes it.
        num_gpus: over which it spreads the states.
        autocast: whether blocks compute in bf16, else in float32, where activations take twice as much.
        checkpointing: whole blocks are computed again in the backward.
        resident: a second model is the reference, in the weights' own precision.
        logits_mib: ``model.logits_mib``.
        plain: the field's recipe: padded rows, logits of every position of one role at a time.
    """
    kind, part = PRESETS[preset], share(strategy, num_gpus)
    trained = size.parameters if trained is None else trained
    of_block = size.blocks / size.layers
    cast = min(2 * of_block if part.gathered else size.blocks, trained)
    gradients = kind.gradients * part.gradients * trained or kind.weights * min(size.largest, trained)
    activations = size.activation_bytes(cast=bool(kind.cast)) if autocast else 2 * size.activation_bytes(cast=False)
    if checkpointing:  # each block's input, float32, and all of one block
        activations = 4 * size.hidden * size.layers + activations / size.layers
    logits = 4 * tokens.padded / 2 * size.vocab if plain else min(4 * tokens.answer * size.vocab, logits_mib << 20)
    weights = kind.weights * part.weights * size.parameters
    return Parts(
        weights=weights / GIB,
        gradients=gradients / GIB,
        master=kind.master * part.states * trained / GIB,
        states=kind.states * part.states * trained / GIB,
        reference=weights / GIB if resident else 0.0,
        cast=kind.cast * cast / GIB if autocast else 0.0,
        gathered=2 * kind.weights * of_block / GIB if part.gathered else 0.0,
        activations=activations * (tokens.padded if plain else tokens.unique) / GIB,
        logits=LOGIT_COPIES["plain" if plain else "ours"] * logits / GIB,
    )


def lora_parts(size: ModelSize, tokens: Tokens) -> Parts:
    """bf16 base weights, frozen; adapters of rank 16 as ``adamw_master``; the reference is the adapter switched off."""
    adapters = step_parts(size, "adamw_master", tokens, trained=size.lora)
    return replace(adapters, weights=adapters.weights + 2 * size.lora / GIB)


def with_nf4_base(parts: Parts, size: ModelSize, autocast: bool = True) -> Parts:
    """The blocks in four bits (``model.lora.base=nf4``), all else float32; one matrix at a time is whole."""
    weights = NF4_BYTES * size.blocks + 4 * (size.parameters - size.blocks + size.lora)
    one = (2 if autocast else 4) * size.hidden * size.intermediate
    return replace(parts, weights=weights / GIB, gathered=one / GIB)
