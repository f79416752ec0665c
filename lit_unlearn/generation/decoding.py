"""Decoding with a cache of keys and values: shared prompt tokens are computed once, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from lit_unlearn.engine.attention import Pattern, inputs_of
from lit_unlearn.engine.body import body_of
from lit_unlearn.engine.head import Head
from lit_unlearn.engine.packing import Packing, pack, prefix_trie
from lit_unlearn.generation.sampling import Draw

MAX_FINISHED = 0.25
"""Fraction of finished rows at which they are dropped from the cache at once."""
DROP_EVERY = 8
"""Steps after which even a single finished row is dropped."""


def decode(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    draw: Draw,
) -> list[list[int]]:
    """Continuations of a batch of prompts, up to and including their first stop token.

    The model takes part in patterns and is in evaluation mode.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # whose continuation each row of the cache is
    head = Head.of(model)
    cache, hidden = _prefill(model, prompts, max_new_tokens)
    logits = head(hidden)  # [R, V]
    for step in range(1, max_new_tokens + 1):
        tokens = draw(logits, rows)  # [R]
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if not _ended(answers[row], stop_ids):
                answers[row].append(token)
        going = [place for place, row in enumerate(rows) if not _ended(answers[row], stop_ids)]
        if not going or step == max_new_tokens:
            break
        finished = len(rows) - len(going)
        if finished and (finished >= MAX_FINISHED * len(rows) or step % DROP_EVERY == 0):
            places = torch.tensor(going, device=tokens.device)
            cache.keep(places)
            rows, tokens = [rows[place] for place in going], tokens[places]
        cache.open_slot()
        logits = head(_body(model, tokens[:, None], cache.positions[:, None], cache)[:, 0])
    return answers


class Cache:
    """Keys and values of every layer, the token at position t in slot t; as a pattern: one new token in each row."""

    def __init__(self, lengths: Tensor, num_slots: int) -> None:
        self.positions = lengths - 1  # [R] of each row's last token
        self.num_slots, self.used = num_slots, int(lengths.max())
        self.rows = torch.arange(len(lengths), device=lengths.device)
        self.mask = torch.empty(0)  # [R, 1, 1, used] which slots a row's last token sees
        self.keys: dict[int, Tensor] = {}  # of each layer [R, H_kv, num_slots, d]
        self.values: dict[int, Tensor] = {}

    def fill(self, layer: int, key: Tensor, value: Tensor, index: Tensor) -> None:
        """Take up rows of prompts: tokens ``index`` [R, P] of [H_kv, U, d].

        Under autocast the rotary embedding leaves float32 keys, which the attention rounds to the values' dtype; they
        are rounded here, once.
        """
        for slots, packed in ((self.keys, key.to(value.dtype)), (self.values, value)):
            rows = packed.index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)  # [R, H_kv, P, d]
            num_rows, num_heads, length, size = rows.shape
            slots[layer] = rows.new_zeros(num_rows, num_heads, self.num_slots, size)  # 0 * NaN would pass the mask
            slots[layer][:, :, :length] = rows

    def open_slot(self) -> None:
        """Make room for the next token of each row."""
        self.positions = self.positions + 1
        self.used += 1
        slots = torch.arange(self.used, device=self.positions.device)
        self.mask = (slots <= self.positions[:, None])[:, None, None]

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None
    ) -> Tensor:
        """Store each row's new token, [R, H, 1, d], and let it see the row.

        The query heads that share a key head stand in the place of query tokens, so that no key is repeated.
        """
        num_rows, stored = len(query), []
        for slots, new in ((self.keys[_layer(module)], key), (self.values[_layer(module)], value)):
            slots[self.rows, :, self.positions] = new[:, :, 0].to(slots.dtype)
            stored.append(slots[:num_rows, :, : self.used])
        folded = query.reshape(num_rows, key.shape[1], -1, query.shape[-1])  # [R, H_kv, H / H_kv, d]
        output = scaled_dot_product_attention(folded, *stored, attn_mask=self.mask, dropout_p=dropout, scale=scaling)
        return output.reshape(num_rows, 1, query.shape[1], -1)

    def keep(self, places: Tensor) -> None:
        """Drop all other rows: the kept ones move to the front, and what was behind them is not used again."""
        self.positions, self.rows = self.positions[places], self.rows[: len(places)]
        for slots in (*self.keys.values(), *self.values.values()):
            slots[: len(places), :, : self.used] = slots[places, :, : self.used]


@dataclass(frozen=True, slots=True)
class _Prefill:
    """The packed prompts' own pattern; their keys and values are put into the cache on the way."""

    packing: Packing
    cache: Cache
    index: Tensor
    """[R, P] packed token of each prompt token of each row."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None
    ) -> Tensor:
        self.cache.fill(_layer(module), key[0], value[0], self.index)
        return self.packing.attend(module, query, key, value, dropout, scaling)


def _prefill(model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], room: int) -> tuple[Cache, Tensor]:
    """The filled cache, and the hidden state [R, D] behind each row's prompt."""
    device, distinct = model.device, list(dict.fromkeys(prompts))
    trie, longest = prefix_trie(distinct), max(map(len, distinct))
    nodes = torch.tensor([[*row, *[0] * (longest - len(row))] for row in trie.nodes], device=device)
    last = torch.tensor([row[-1] for row in trie.nodes], device=device)
    places = {prompt: place for place, prompt in enumerate(distinct)}
    of_row = torch.tensor([places[prompt] for prompt in prompts], device=device)  # [R] into the distinct prompts
    cache = Cache(torch.tensor(list(map(len, prompts)), device=device), longest + room)
    pattern = _Prefill(pack(trie, 1, device), cache, nodes[of_row])
    tokens, depths = (torch.tensor([values], device=device) for values in (trie.tokens, trie.depths))  # [1, U]
    return cache, _body(model, tokens, depths, pattern)[0, last[of_row]]


def _body(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, pattern: Pattern) -> Tensor:
    return body_of(model)[1](**inputs_of(input_ids, position_ids, pattern), use_cache=False).last_hidden_state


def _layer(attention: nn.Module) -> int:
    assert isinstance(attention.layer_idx, int)
    return attention.layer_idx


def _ended(answer: Sequence[int], stop_ids: Sequence[int]) -> bool:
    return bool(answer) and answer[-1] in stop_ids
