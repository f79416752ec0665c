"""The memory of one step of a run, as its settings have it, on one device."""

from __future__ import annotations

from lit_unlearn.memory.presets import PRESETS
from lit_unlearn.memory.size import GIB, LOGIT_COPIES, ModelSize, Parts
from lit_unlearn.memory.tokens import Tokens


def step_parts(
    size: ModelSize,
    trained: int,
    optimizer: str,
    tokens: Tokens,
    autocast: bool,
    checkpointing: bool = False,
    resident: bool = False,
    logits_mib: int = 256,
) -> Parts:
    """GiB on one device, weights not sharded.

    Args:
        size: of the model without adapters.
        trained: parameters that get a gradient; adapters are there beside the model's own.
        optimizer: a value of ``optim.name``.
        tokens: of the rows that one device has in a step.
        autocast: whether blocks compute in bf16, else in float32, where activations take twice as much.
        checkpointing: whole blocks are computed again in the backward.
        resident: a second model is the reference.
        logits_mib: ``model.logits_mib``.
    """
    kind = PRESETS[optimizer]
    activations = size.activation_bytes(cast=bool(kind.cast)) if autocast else 2 * size.activation_bytes(cast=False)
    if checkpointing:  # each block's input, float32, and all of one block
        activations = 4 * size.hidden * size.layers + activations / size.layers
    logits = min(4 * tokens.answer * size.vocab / GIB, logits_mib / 2**10)
    weights = kind.weights * size.parameters / GIB
    return Parts(
        weights=weights,
        gradients=kind.gradients * trained / GIB or kind.weights * min(size.largest, trained) / GIB,
        master=kind.master * trained / GIB,
        states=kind.states * trained / GIB,
        reference=weights if resident else 0.0,
        cast=kind.cast * min(size.blocks, trained) / GIB if autocast else 0.0,
        gathered=0.0,
        activations=activations * tokens.unique / GIB,
        logits=LOGIT_COPIES["ours"] * logits,
    )
