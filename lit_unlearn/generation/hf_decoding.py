"""The library's own generation: beam search, and decoding of models whose attention follows no pattern."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from lit_unlearn.generation.sampling import Draw


def hf_decode(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], max_new_tokens: int, draw: Draw
) -> list[list[int]]:
    """Continuations of a batch of prompts, padded behind their stop token."""
    ids, mask = _pad_left(prompts)
    with _no_defaults_of_its_own(model):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
            synced_gpus=False,  # the weights are whole, and other ranks may be asked nothing
            logits_processor=LogitsProcessorList([_Drawn(draw)]),
        )
    assert isinstance(output, Tensor)
    return output[:, ids.shape[1] :].tolist()


def hf_beams(
    model: PreTrainedModel, prompt: Sequence[int], stop_ids: Sequence[int], max_new_tokens: int, num_beams: int
) -> list[list[int]]:
    """The ``num_beams`` best continuations of one prompt, best first, padded behind their stop token."""
    with _no_defaults_of_its_own(model):
        output = model.generate(  # type: ignore[operator]
            input_ids=torch.tensor([prompt], device=model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64, device=model.device),
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
            synced_gpus=False,  # the weights are whole, and other ranks may be asked nothing
        )
    assert isinstance(output, Tensor)
    return output[:, len(prompt) :].tolist()


@contextmanager
def _no_defaults_of_its_own(model: PreTrainedModel) -> Iterator[None]:
    """Hub models ship sampling settings, repetition penalties among them, that would change greedy answers too."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _Drawn(LogitsProcessor):
    """Leaves the token that was chosen as the only one of its row; greedy search then takes it."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = self.draw(scores, range(len(scores)))  # [R]
        return torch.full_like(scores, float("-inf")).scatter(-1, tokens[:, None], 0.0)


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
