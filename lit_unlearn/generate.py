"""Batched answers to prompts: greedy, or sampled with one random stream a row, so batches and ranks change nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0
    top_p: float = 1.0
    """Smallest set of tokens with at least this mass; 1 keeps all."""
    rank_band: tuple[float, float] | None = None
    """Draw only among tokens whose rank, as a fraction of the vocabulary, lies in [low, high)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and the name of its random stream."""

    ids: tuple[int, ...]
    stream: str = ""


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    sampling: Sampling | None = None,
    title: str | None = None,
) -> list[tuple[int, ...]]:
    """Continuation of each prompt, cut behind its first stop token (which is kept); greedy without ``sampling``.

    Prompts are batched by length. ``title`` shows a progress bar.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    with evaluating(model), _no_defaults_of_its_own(model):
        for batch in tqdm(batches, desc=title, disable=title is None, leave=False):
            chosen = [prompts[index] for index in batch]
            processors = LogitsProcessorList()
            if sampling is not None:
                processors.append(_Draw(sampling, [prompt.stream for prompt in chosen], max_new_tokens))
            ids, mask = _pad_left([prompt.ids for prompt in chosen])
            output = model.generate(  # type: ignore[operator]
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                eos_token_id=list(stop_ids),
                pad_token_id=stop_ids[0],
                logits_processor=processors,
            )
            assert isinstance(output, Tensor)
            for index, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                answers[index] = cut_at_stop(row, stop_ids)
    return answers


@torch.no_grad()
def beam_search(
    model: PreTrainedModel, prompt: Prompt, stop_ids: Sequence[int], max_new_tokens: int, num_beams: int
) -> list[tuple[int, ...]]:
    """The ``num_beams`` best continuations of one prompt, best first."""
    with evaluating(model), _no_defaults_of_its_own(model):
        output = model.generate(  # type: ignore[operator]
            input_ids=torch.tensor([prompt.ids], device=model.device),
            attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.int64, device=model.device),
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
        )
    assert isinstance(output, Tensor)
    return [cut_at_stop(row, stop_ids) for row in output[:, len(prompt.ids) :].tolist()]


def cut_at_stop(tokens: Sequence[int], stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Tokens up to and including the first stop token."""
    end = next((index + 1 for index, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tuple(tokens[:end])


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


@contextmanager
def _no_defaults_of_its_own(model: PreTrainedModel) -> Iterator[None]:
    """Hub models ship sampling settings, repetition penalties among them, that would change greedy answers too."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _Draw(LogitsProcessor):
    """Leaves one token a row, drawn by inverse transform from the row's own uniforms; greedy search then takes it."""

    def __init__(self, sampling: Sampling, streams: Sequence[str], max_new_tokens: int) -> None:
        self.sampling, self.step = sampling, 0
        rows = []
        for stream in streams:
            generator = random.Random(stream)
            rows.append([generator.random() for _ in range(max_new_tokens)])
        self.uniforms = torch.tensor(rows, dtype=torch.float64)  # [B, max_new_tokens]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits, ids = (scores.float() / self.sampling.temperature).sort(descending=True)  # [B, V]
        if self.sampling.rank_band is not None:
            low, high = (round(edge * logits.shape[-1]) for edge in self.sampling.rank_band)
            logits, ids = logits[:, low:high], ids[:, low:high]
        mass = logits.double().softmax(-1).cumsum(-1)  # [B, V]
        uniform = self.uniforms[:, self.step : self.step + 1].to(mass.device)  # [B, 1]
        if self.sampling.top_p < 1:
            last = torch.searchsorted(mass, torch.full_like(uniform, self.sampling.top_p))
            uniform = uniform * mass.gather(-1, last.clamp(max=mass.shape[-1] - 1))
        index = torch.searchsorted(mass, uniform.contiguous()).clamp(max=mass.shape[-1] - 1)
        self.step += 1
        return torch.full_like(scores, float("-inf")).scatter(-1, ids.gather(-1, index), 0.0)


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
