"""Tiny seeded models, rows, a tokenizer and fits shared by the tests; nothing is downloaded."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}

import logging
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.data.ends import AnswerEnd
from lit_unlearn.data.tokenize import Encoded, pad
from lit_unlearn.models.tiny import train_tokenizer
from lit_unlearn.types import Rows

torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

VOCABULARY = 160
CORPUS = ["Question: Who wrote the book?\nAnswer: Ada wrote it in the year 1815.", "A quiet river runs north."] * 3


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """A random Llama in evaluation mode; equal arguments give equal weights."""

    def make(seed: int = 0, vocabulary: int = VOCABULARY, num_layers: int = 4, scale: float = 0.2) -> PreTrainedModel:
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=scale,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture
def policy(make_model) -> PreTrainedModel:
    return make_model(seed=0)


@pytest.fixture
def reference(make_model) -> PreTrainedModel:
    """Another model than the policy: with equal weights every log-ratio is 0 and a test is blind."""
    return make_model(seed=1).requires_grad_(False)


@pytest.fixture(scope="session")
def make_encoded() -> Callable[..., list[Encoded]]:
    """Rows of random ids with the answer lengths asked for; ids 0 and 1 (padding, end) occur in no prompt."""

    def make(
        answer_lengths: Sequence[int], seed: int = 0, vocabulary: int = VOCABULARY, first_id: int = 0
    ) -> list[Encoded]:
        draw = random.Random(f"{seed}")
        ids = lambda count: tuple(draw.randrange(2, vocabulary) for _ in range(count))  # noqa: E731
        lengths = enumerate(answer_lengths)
        return [Encoded(first_id + i, ids(2 + (i * 2 + seed) % 5), (*ids(n - 1), 1) if n else ()) for i, n in lengths]

    return make


@pytest.fixture(scope="session")
def make_rows(make_encoded) -> Callable[..., Rows]:
    def make(answer_lengths: Sequence[int] = (5, 1, 9, 3), seed: int = 0) -> Rows:
        return pad(make_encoded(answer_lengths, seed))

    return make


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(CORPUS, 300)


@pytest.fixture(scope="session")
def make_end(tokenizer) -> Callable[..., AnswerEnd]:
    """Answers that end with one of these ids."""
    return lambda *stops: AnswerEnd(tokenizer, stops[0], stops)


class _Record(L.Callback):
    """Every train/ number of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        logged = trainer.callback_metrics.items()
        self.steps.append({name: value.item() for name, value in logged if name.startswith("train/")})


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., list[dict[str, float]]]:
    """Train on the CPU; the logged numbers of every step come back."""

    def run(module: Any, data: Any, callbacks: Sequence[L.Callback] = (), **options) -> list[dict[str, float]]:
        record = _Record()
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            callbacks=[*callbacks, record],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
            **options,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found .* in eval mode")
            trainer.fit(module, data)
        return record.steps

    return run
