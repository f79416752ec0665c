"""The memory of a run in closed form: states by optimizer and strategy, activations and logits by tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from lit_unlearn.engine.body import decoder_blocks
from lit_unlearn.memory.presets import PRESETS, Preset, share
from lit_unlearn.memory.tokens import Tokens

GIB = 2**30
LORA_RANK = 16
USABLE = 0.97
"""Of a card's GB taken as GiB: 80 GB cards have 79.1, 141 GB cards 139.8; the CUDA context is in ``WORKSPACE``."""
WORKSPACE = 1.0
"""GiB of context, kernels' workspaces and fragmentation."""
LOGIT_COPIES = {"plain": 5, "ours": 2}
"""Float32 buffers of the logits alive at once: the upcast, two log-softmaxes and their gradients; a slice and its
gradient."""
LOGITS_GIB = 0.25
"""Of one slice at most, ``model.logits_mib``."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the closed form reads of a model."""

    parameters: int
    blocks: int
    """Parameters of all decoder blocks."""
    largest: int
    """Of the largest single tensor."""
    lora: int
    """Of rank-16 adapters on every linear layer of the blocks."""
    layers: int
    hidden: int
    intermediate: int
    kv_share: float
    """Key-value heads over heads."""
    vocab: int

    def activation_bytes(self, cast: bool) -> float:
        """A token, all layers, kept for the backward; Hugging Face's Llama with a fused attention.

        bf16 weights: 49.1 times the hidden size and layer at the proportions of Llama-3.1-8B. Under autocast the
        stream between the blocks is float32: 59.1.
        """
        factor = (30.16 if cast else 20.16) + 4 * self.kv_share + 8 * self.intermediate / self.hidden
        return factor * self.hidden * self.layers


def size_of(model: PreTrainedModel) -> ModelSize:
    """Counted on the model, whose weights may be on the meta device.

    Raises:
        UserError: its decoder blocks are not found.
    """
    text, blocks = model.config.get_text_config(), decoder_blocks(model)
    heads = text.num_attention_heads
    of_blocks = list(blocks.parameters())
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        blocks=sum(p.numel() for p in of_blocks),
        largest=max(p.numel() for p in model.parameters()),
        lora=sum(LORA_RANK * sum(p.shape) for p in of_blocks if p.dim() == 2),
        layers=len(blocks),
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        kv_share=(getattr(text, "num_key_value_heads", None) or heads) / heads,
        vocab=text.vocab_size,
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """GiB on one GPU."""

    weights: float
    gradients: float
    master: float
    states: float
    reference: float
    cast: float
    gathered: float
    activations: float
    logits: float
    workspace: float = WORKSPACE

    @property
    def fixed(self) -> float:
        """Weights, gradients, masters, states and the reference: there whatever the batch."""
        return self.weights + self.gradients + self.master + self.states + self.reference

    @property
    def total(self) -> float:
        """Peak of a step: gradients come while activations go, layer by layer, so the larger of the two counts."""
        passing = max(self.gradients, self.activations + self.logits)
        return self.fixed - self.gradients + self.cast + self.gathered + passing + self.workspace


def full_parts(
    size: ModelSize, preset: str, strategy: str, num_gpus: int, tokens: Tokens, recipe: Literal["plain", "ours"]
) -> Parts:
    """All parameters trained. The rows are those of one GPU. A cached reference is a few KB and on the host.

    ``ours``: each unique token once, a slice of the logits, no second model. ``plain``: padded rows, logits of every
    position of one role at a time, a resident reference in the weights' own precision.
    """
    kind, part = PRESETS[preset], share(strategy, num_gpus)
    gib = size.parameters / GIB
    gradients = kind.gradients * part.gradients * gib if kind.gradients else kind.weights * size.largest / GIB
    return Parts(
        weights=kind.weights * part.weights * gib,
        gradients=gradients,
        master=kind.master * part.states * gib,
        states=kind.states * part.states * gib,
        reference=kind.weights * part.weights * gib if recipe == "plain" else 0.0,
        cast=_cast(kind, size, part.gathered),
        gathered=2 * kind.weights * size.blocks / size.layers / GIB if part.gathered else 0.0,
        **_by_tokens(size, tokens, recipe, bool(kind.cast)),
    )


def lora_parts(size: ModelSize, tokens: Tokens) -> Parts:
    """bf16 base weights, frozen; adapters of rank 16 as ``adamw_master``; the reference is the adapter switched off."""
    base, adapters = 2 * size.parameters / GIB, size.lora / GIB
    return Parts(
        weights=base + 2 * adapters,
        gradients=2 * adapters,
        master=4 * adapters,
        states=8 * adapters,
        reference=0.0,
        cast=0.0,
        gathered=0.0,
        **_by_tokens(size, tokens, "ours", cast=False),
    )


def _cast(kind: Preset, size: ModelSize, gathered: bool) -> float:
    """Under full sharding the copies of two blocks at a time."""
    blocks = 2 * size.blocks / size.layers if gathered else size.blocks
    return kind.cast * blocks / GIB


def _by_tokens(size: ModelSize, tokens: Tokens, recipe: Literal["plain", "ours"], cast: bool) -> dict[str, float]:
    count = tokens.padded if recipe == "plain" else tokens.unique
    positions = tokens.padded / 2 if recipe == "plain" else tokens.answer
    slice_gib = 4 * positions * size.vocab / GIB
    if recipe == "ours":
        slice_gib = min(slice_gib, LOGITS_GIB)
    return {
        "activations": size.activation_bytes(cast) * count / GIB,
        "logits": LOGIT_COPIES[recipe] * slice_gib,
    }


def smallest_card(gib: float, cards: list[int]) -> int | None:
    """GB of the first card that holds it; None: no card does."""
    return next((card for card in sorted(cards) if gib <= USABLE * card), None)
