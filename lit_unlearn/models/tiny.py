"""A tokenizer trained on the benchmark's own text, and the shape of the small Llama that goes with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
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
        if self.vocab_size < 300:
            raise ValueError(
                f"model.tiny.vocab_size={self.vocab_size} must be at least 300: 256 bytes and the special tokens"
            )


def train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Byte-level BPE with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=_TEMPLATE)
