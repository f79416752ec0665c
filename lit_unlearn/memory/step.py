"""The memory of one step on one GPU."""

from __future__ import annotations

from dataclasses import replace

from lit_unlearn.memory.presets import BUCKET, LIVE, Preset, Share, held, share
from lit_unlearn.memory.size import GIB, LOGIT_COPIES, ModelSize, Parts
from lit_unlearn.memory.tokens import Tokens

BASES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Bytes a weight of a quantised base: 4 bits, one byte for each 64 and one float32 for each 256 of those (QLoRA,
Dettmers et al. 2023, double quantisation)."""


def step_parts(
    size: ModelSize,
    preset: str,
    tokens: Tokens,
    *,
    trained: int | None = None,
    strategy: str = "ddp",
    num_gpus: int = 1,
    offload: str = "none",
    autocast: bool = True,
    checkpointing: bool = False,
    resident: bool = False,
    micro: bool = False,
    logits_mib: int = 256,
    plain: bool = False,
) -> Parts:
    """GiB on one of ``num_gpus``. A cached reference is a few KB and on the host.

    Llama-3.1-8B, ``adamw``, one GPU, 32 + 32 TOFU rows: 29.9 weights, 59.8 states and the workspace stay. With whole
    blocks checkpointed no cast survives a block, and the backward is the peak: 29.9 of gradients, 1.3 of one block, in
    all 121.9. Else it is the end of the forward: activations 27.4, casts 13.0, head 4.9, logits 0.5, in all 136.5.

    Args:
        size: of the model without adapters.
        preset: a name in ``PRESETS``, among them the values of ``optim.name``.
        tokens: of the rows that one GPU has in one forward; micro-batches lower these, and nothing else.
        trained: parameters that get a gradient; adapters are there beside the model's own. None: all.
        strategy: as ``share`` takes it, over ``num_gpus``.
        offload: ``strategy.offload``.
        autocast: blocks compute in bf16, else in float32, where activations take twice as much.
        checkpointing: whole blocks are computed again in the backward.
        resident: a second model is the reference, in the weights' own precision.
        micro: a step has more forwards, with gradients in all but the first.
        plain: the field's recipe: padded rows, logits of every position of one role at a time.
    """
    kind, part = held(preset, strategy, autocast), share(strategy, num_gpus, micro)
    trained = size.parameters if trained is None else trained
    weights, gradients, master, states, host = _of_states(size, kind, part, trained, offload)
    reference = _of_states(size, kind, part, 0, "none")[0] if resident else 0.0
    copies = kind.casts and strategy != "fsdp2"
    cast, activations, logits, block = _of_rows(size, kind, tokens, autocast, copies, checkpointing, logits_mib, plain)
    width = 2 if autocast else kind.weights
    gathered, buckets, passing, moving = _between_ranks(size, kind, part, strategy, width, trained, offload)
    head = (
        (10 if autocast else 4) * size.vocab * size.hidden
        if trained == size.parameters and not plain and tokens.answer
        else 0.0
    )
    found = (weights, gradients, master, states, reference, cast, gathered, buckets, activations, logits, head)
    return Parts(*(n / GIB for n in (*found, max(block, passing), moving, host)), keeps=part.keeps or micro)


def _of_states(
    size: ModelSize, kind: Preset, part: Share, trained: int, offload: str
) -> tuple[float, float, float, float, float]:
    """Bytes of weights, gradients, masters and moments on one GPU, and of what its host holds."""
    ends = kind.ends * size.ends
    weights = (kind.weights * size.parameters + ends) * part.weights
    gradients = (kind.gradients * trained + ends * (trained == size.parameters)) * part.gradients
    gradients = gradients or kind.weights * min(size.largest, trained)
    master, states = (width * part.states * trained for width in (kind.master, kind.states))
    host = kind.host * trained
    if offload != "none":
        host, gradients, master, states = host + gradients + master + states, 0.0, 0.0, 0.0
    if offload == "parameters":
        host, weights = host + weights, 0.0
    return weights, gradients, master, states, host


def _of_rows(
    size: ModelSize,
    kind: Preset,
    tokens: Tokens,
    autocast: bool,
    copies: bool,
    checkpointing: bool,
    logits_mib: int,
    plain: bool,
) -> tuple[float, float, float, float]:
    """Bytes of casts, of activations of all blocks, of logits; of one block's activations and casts."""
    cast = 2 * size.blocks if copies and autocast else 0
    of_all = size.activation_bytes(cast=kind.weights == 4) if autocast else 2 * size.activation_bytes(cast=False)
    num_tokens = tokens.padded if plain else tokens.unique
    block = (of_all * num_tokens + cast) / size.layers
    if checkpointing:  # each block's input, float32, and no cast
        of_all, cast = 4 * size.hidden * size.layers, 0
    logits = 4 * tokens.padded / 2 * size.vocab if plain else min(4 * tokens.answer * size.vocab, logits_mib << 20)
    return cast, of_all * num_tokens, LOGIT_COPIES["plain" if plain else "ours"] * logits, block


def _between_ranks(
    size: ModelSize, kind: Preset, part: Share, strategy: str, width: float, trained: int, offload: str
) -> tuple[float, float, float, float]:
    """Bytes of weights that are whole, of buckets that stay, of gradients on their way, of copies in the step.

    What lies outside the blocks is whole for a step, and its gradients come last: of a tied matrix twice, from the head
    and from the embedding. ``width``: bytes a weight that is whole.
    """
    ends = min(size.ends, trained)
    largest = min(size.largest, trained)
    own = largest * (kind.weights + kind.ends)
    twice = own * (1 + size.tied)
    two_blocks = 2 * size.blocks / size.layers
    bucket = width * min(BUCKET, trained)
    arrived = kind.gradients * part.gradients * largest if offload == "none" else 0.0
    whole = 1 if part.weights == 1 else 0
    if strategy == "fsdp2" and not whole:  # the weights are cut again before float32 copies of gradients are reduced
        gathered, whole_ends = width * (size.ends + two_blocks), width * ends
        passing = max(whole_ends * (1 + size.tied), whole_ends + 4 * ends - gathered)
        return gathered, 0.0, passing - arrived * ends / largest, 0.0
    if strategy == "zero3" and not whole:
        live = min(size.parameters, max(size.ends + two_blocks, LIVE))
        moving = 0.0 if offload != "none" else 4 * min(LIVE, part.gradients * trained)
        return width * live, bucket, bucket + width * largest * (1 + size.tied) - arrived, moving
    if strategy in ("zero1", "zero2"):
        moving = 0.0 if offload != "none" else 4 * part.states * trained
        return 0.0, 0.0, bucket + width * largest * (1 + size.tied) - arrived, bucket + moving
    if part.keeps:  # DDP: gradients are views of its buckets
        return 0.0, 0.0, twice, 0.0
    return 0.0, 0.0, own * size.tied, 0.0


def lora_parts(
    size: ModelSize, preset: str, tokens: Tokens, *, base: str | None = None, checkpointing: bool = False
) -> Parts:
    """Adapters of rank 16 in float32 on a frozen base; the reference is the adapter switched off.

    The base lies as ``preset`` holds weights: float32 under ``adamw``, bf16 blocks under ``adamw_8bit``. ``base``: as
    of ``on_base``.
    """
    parts = step_parts(size, preset, tokens, trained=size.lora, checkpointing=checkpointing)
    return on_base(replace(parts, weights=parts.weights + 4 * size.lora / GIB), size, preset, base)


def on_base(parts: Parts, size: ModelSize, preset: str, base: str | None) -> Parts:
    """``base``: a name in ``BASES``, in which the matrices of the blocks lie; embedding and head stay as they are."""
    if base is None:
        return parts
    saved = (held(preset, "single", True).weights - BASES[base]) * size.blocks
    return replace(parts, weights=parts.weights - saved / GIB, cast=0.0)  # a layer is computed in what it is read as
