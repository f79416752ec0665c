"""Batched answers to prompts: greedy, or sampled with one random stream a row, so batches and ranks change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from transformers import PreTrainedModel

from lit_unlearn.display.screen import track
from lit_unlearn.engine.body import evaluating
from lit_unlearn.errors import UserError
from lit_unlearn.generation.hf_decoding import hf_beams
from lit_unlearn.generation.sampling import Draw, Sampling
from lit_unlearn.generation.way import Way, continuations, way_of
from lit_unlearn.halving import Halving


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

    Prompts are batched by length, equal ones side by side. ``title`` shows on the display.

    Raises:
        UserError: the model cannot be decoded rightly.
    """
    way = way_of(model)
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index].ids), prompts[index].ids))
    mixed = way in (Way.ours, Way.padded)
    alike = [order] if mixed else [list(group) for _, group in groupby(order, lambda index: len(prompts[index].ids))]
    batches = [group[first : first + batch_size] for group in alike for first in range(0, len(group), batch_size)]

    def tell(batch: Sequence[int]) -> list[tuple[int, ...]]:
        draw = Draw(sampling, [prompts[index].stream for index in batch])
        ids = [prompts[index].ids for index in batch]
        return [cut_at_stop(t, stop_ids) for t in continuations(model, way, ids, stop_ids, max_new_tokens, draw)]

    answers: list[tuple[int, ...]] = [()] * len(prompts)
    fitting = Halving(tell, "answers to generate")
    with evaluating(model):
        for batch in track(batches, title):
            for index, answer in zip(batch, fitting(batch), strict=True):
                answers[index] = answer
    return answers


@torch.no_grad()
def beam_search(
    model: PreTrainedModel, prompt: Prompt, stop_ids: Sequence[int], max_new_tokens: int, num_beams: int
) -> list[tuple[int, ...]]:
    """The ``num_beams`` best continuations of one prompt, best first.

    Raises:
        UserError: the library, whose beams these are, cannot generate with this model.
    """
    if way_of(model) == Way.whole:
        raise UserError(f"{type(model).__name__}: the library's beam search is not right with it; set squeeze=null")
    with evaluating(model):
        found = hf_beams(model, prompt.ids, stop_ids, max_new_tokens, num_beams)
    return [cut_at_stop(tokens, stop_ids) for tokens in found]


def cut_at_stop(tokens: Sequence[int], stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Tokens up to and including the first stop token."""
    end = next((index + 1 for index, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tuple(tokens[:end])
