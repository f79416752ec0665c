"""The sizes of a model that its memory depends on, and the parts of that memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_unlearn.engine.body import decoder_blocks

GIB = 2**30
LORA_RANK = 16
USABLE = 0.97
"""Of a card's GB taken as GiB: 80 GB cards have 79.1, 141 GB cards 139.8; the CUDA context is in ``WORKSPACE``."""
WORKSPACE = 1.0
"""GiB of context, kernels' workspaces and fragmentation."""
LOGIT_COPIES = {"plain": 5, "ours": 2}
"""Float32 buffers of the logits alive at once: the upcast, two log-softmaxes and their gradients; a slice and its
gradient."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the closed form reads of a model."""

    parameters: int
    blocks: int
    """Parameters of all decoder blocks."""
    largest: int
    """Of the largest single tensor."""
    tied: bool
    """Embedding and head are one matrix."""
    lora: int
    """Of rank-16 adapters on every linear layer of the blocks."""
    layers: int
    hidden: int
    intermediate: int
    kv_share: float
    """Key-value heads over heads."""
    vocab: int

    @property
    def ends(self) -> int:
        """Parameters outside the blocks: embedding, head, last norm; whole for a step under ZeRO-3 and FSDP2."""
        return self.parameters - self.blocks

    def activation_bytes(self, cast: bool) -> float:
        """A token, all layers, kept for the backward; Hugging Face's Llama with a fused attention.

        bf16 weights: 49.1 times the hidden size and layer at the proportions of Llama-3.1-8B. Under autocast the
        stream between the blocks is float32: 59.1.
        """
        factor = (30.16 if cast else 20.16) + 4 * self.kv_share + 8 * self.intermediate / self.hidden
        return factor * self.hidden * self.layers


def num_weights(parameter: Tensor) -> int:
    """That it stands for; of a quantized base a byte of a matrix holds two, and a byte of anything else none."""
    if parameter.dtype != torch.uint8:
        return parameter.numel()
    return 2 * parameter.numel() if parameter.dim() == 2 else 0


def size_of(model: PreTrainedModel) -> ModelSize:
    """Counted on the model, whose weights may be on the meta device.

    Raises:
        UserError: its decoder blocks are not found.
    """
    text, blocks = model.config.get_text_config(), decoder_blocks(model)
    heads = text.num_attention_heads
    of_blocks, ends = list(blocks.parameters()), (model.get_input_embeddings(), model.get_output_embeddings())
    return ModelSize(
        parameters=sum(map(num_weights, model.parameters())),
        blocks=sum(map(num_weights, of_blocks)),
        largest=max(map(num_weights, model.parameters())),
        tied=len({id(end.weight) for end in ends if end is not None}) == 1 < len(ends),
        lora=sum(LORA_RANK * (len(p) + num_weights(p) // len(p)) for p in of_blocks if p.dim() == 2),
        layers=len(blocks),
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        kv_share=(getattr(text, "num_key_value_heads", None) or heads) / heads,
        vocab=text.vocab_size,
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """GiB on one GPU, and in its host."""

    weights: float
    gradients: float
    master: float
    states: float
    reference: float
    cast: float
    """bf16 copies of the blocks' matrices, from the forward to the backward."""
    gathered: float
    """Weights that are whole for a while, where they lie in pieces."""
    buckets: float
    """What collectives keep."""
    activations: float
    """Of all blocks, from the forward to the backward: everything, or their inputs where they are checkpointed."""
    logits: float
    head: float
    """The head's gradient, float32, on its own until the backward; in bf16 products a second one and bf16 weights."""
    passing: float
    """What the backward holds besides: one block's activations and casts, or gradients on their way to other ranks."""
    moving: float
    """Copies of the gradients that the optimizer's step makes."""
    host: float
    """In the memory of the host."""
    keeps: bool
    """Gradients have their place in the forward too: buckets, flat buffers, micro-batches before."""
    workspace: float = WORKSPACE

    @property
    def fixed(self) -> float:
        """Weights, gradients, masters, states and the reference: there whatever the batch."""
        return self.weights + self.gradients + self.master + self.states + self.reference

    @property
    def moments(self) -> dict[str, float]:
        """GiB at the end of the forward, towards the end of the backward, and in the optimizer's step.

        Between the first two gradients come while activations go, layer by layer, so one of the ends is the larger.
        """
        stay = self.fixed - self.gradients + self.buckets + self.workspace
        kept = self.gradients if self.keeps else 0.0
        forward = kept + self.gathered + self.cast + self.activations + self.head + self.logits
        backward = self.gradients + self.gathered + self.passing
        return {
            "forward": stay + forward,
            "backward": stay + backward,
            "step": stay + self.gradients + self.moving,
        }

    @property
    def total(self) -> float:
        """Peak of a step."""
        return max(self.moments.values())


def smallest_card(gib: float, cards: list[int]) -> int | None:
    """GB of the first card that holds it; None: no card does."""
    return next((card for card in sorted(cards) if gib <= USABLE * card), None)
