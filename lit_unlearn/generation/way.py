"""Which loop decodes a model rightly: tried once, on a few tokens, against the model's own forward."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import Enum
from random import Random
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_unlearn.engine.trial import can_pack, differs, exactly
from lit_unlearn.generation.decoding import decode
from lit_unlearn.generation.hf_decoding import hf_decode
from lit_unlearn.generation.sampling import Draw

log = logging.getLogger(__name__)
PROMPT_LENGTHS = (7, 3, 7)
STEPS = 4


class Way(Enum):
    """In order of preference."""

    ours = "decode"
    padded = "the library's loop, prompts padded on the left"
    even = "the library's loop, prompts of one length at a time"
    whole = "whole rows again for every token"


_known: WeakKeyDictionary[PreTrainedModel, Way] = WeakKeyDictionary()


def continuations(
    model: PreTrainedModel, way: Way, prompts: Sequence[tuple[int, ...]], stops: Sequence[int], limit: int, draw: Draw
) -> list[list[int]]:
    """Of a batch of prompts; of one length where the way asks for it."""
    loops = {Way.ours: decode, Way.padded: hf_decode, Way.even: hf_decode, Way.whole: _whole_rows}
    return loops[way](model, prompts, stops, limit, draw)


def _whole_rows(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], stops: Sequence[int], limit: int, draw: Draw
) -> list[list[int]]:
    """The model's own forward, token by token: slow, and right where a cache of the library's is not."""
    rows = torch.tensor(prompts, device=model.device)  # [R, T]
    begin = rows.shape[1]
    for _ in range(limit):
        logits = model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits[:, -1]
        rows = torch.cat([rows, draw(logits, range(len(rows)))[:, None]], 1)
        if torch.isin(rows[:, begin:], torch.tensor(stops, device=rows.device)).any(1).all():
            break
    return rows[:, begin:].tolist()


def way_of(model: PreTrainedModel) -> Way:
    """The first way whose every step offers the logits of the whole row.

    Raises:
        UserError: the model cannot be scored.
    """
    packs = can_pack(model)
    if model in _known and (_known[model] != Way.ours or packs):
        return _known[model]
    with exactly(model):
        fast = (way for way in Way if way != Way.whole and (way != Way.ours or packs) and _right(model, way))
        way = _known[model] = next(fast, Way.whole)
    if way == Way.whole:
        log.warning(
            "%s: the library's generation is not its own forward: answers are made slowly", type(model).__name__
        )
    return way


def _right(model: PreTrainedModel, way: Way) -> bool:
    draw, vocabulary = Random("way"), model.config.get_text_config().vocab_size
    low, high = min(8, vocabulary - 1), min(vocabulary, 1000)
    length = max(PROMPT_LENGTHS) + STEPS
    rows = [tuple(draw.randrange(low, high) for _ in range(length)) for _ in PROMPT_LENGTHS]
    own = model(input_ids=torch.tensor(rows, device=model.device), use_cache=False).logits  # [R, T, V]
    for batch in [[0, 2], [1]] if way == Way.even else [[0, 1, 2]]:
        script = _Script([rows[row][PROMPT_LENGTHS[row] :] for row in batch])
        prompts = [rows[row][: PROMPT_LENGTHS[row]] for row in batch]
        try:
            continuations(model, way, prompts, [low - 1], STEPS, script)
        except Exception:  # whatever a library of two hundred models raises, this way is not one
            return False
        for place, row in enumerate(batch):
            begin = PROMPT_LENGTHS[row] - 1
            if differs(own[row, begin : begin + STEPS], torch.stack(script.offered[place])):
                return False
    return True


class _Script(Draw):
    """Tokens known beforehand; the logits that were offered are kept."""

    def __init__(self, tokens: Sequence[Sequence[int]]) -> None:
        self.tokens = tokens
        self.offered: list[list[Tensor]] = [[] for _ in tokens]

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        for row, offered in zip(rows, logits, strict=True):
            self.offered[row].append(offered.clone())
        return torch.tensor([self.tokens[row][len(self.offered[row]) - 1] for row in rows], device=logits.device)
