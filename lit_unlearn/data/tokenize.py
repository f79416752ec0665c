"""Text to token ids and labels: the only place that renders prompts and masks them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lit_unlearn.benchmarks.base import Example
from lit_unlearn.data.settings import PromptConfig
from lit_unlearn.errors import UserError
from lit_unlearn.types import IGNORE_INDEX, Rows

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as token ids."""

    id: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """Labelled tokens; the end-of-answer token is the last, unless the answer was cut."""
    reference_logps: tuple[float, ...] | None = None
    """Log-prob of each answer token under the reference, where known."""
    weight: float = 1.0


@dataclass(frozen=True)
class Encoder:
    """Renders examples with the model's own chat template, or as plain text where it has none."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    prompt: PromptConfig = field(default_factory=PromptConfig)

    def encode(self, examples: Iterable[Example], name: str) -> list[Encoded]:
        """Token ids of a split; ``name`` is told where a row does not fit.

        Raises:
            UserError: a prompt alone reaches ``max_length``.
        """
        encoded, cut = [], 0
        for example in examples:
            prompt, answer = self._ids(example.prompt, example.response)
            room = self.max_length - len(prompt)
            if room < 1:
                raise UserError(
                    f"{name}, row {example.id}: the prompt has {len(prompt)} tokens, data.max_length is "
                    f"{self.max_length}; raise data.max_length or drop the row"
                )
            cut += len(answer) > room
            encoded.append(Encoded(example.id, tuple(prompt), tuple(answer[:room])))
        if cut:
            log.warning("%s: %d answers were cut to data.max_length=%d tokens", name, cut, self.max_length)
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return (text if isinstance(text, str) else text[0]).strip()

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        end = self.tokenizer.eos_token_id
        assert isinstance(end, int)
        return end

    def _ids(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        if self.tokenizer.chat_template is None:
            prompt_ids = self.tokenizer(self.prompt.plain.format(prompt=prompt))["input_ids"]
            answer_ids = self.tokenizer(response, add_special_tokens=False)["input_ids"]
            return prompt_ids, [*answer_ids, self.end_id]
        turns = [{"role": "user", "content": prompt}]
        if self.prompt.system_prompt is not None:
            turns.insert(0, {"role": "system", "content": self.prompt.system_prompt})
        prompt_ids = self._render(turns, add_generation_prompt=True)
        whole = self._render([*turns, {"role": "assistant", "content": response}], add_generation_prompt=False)
        if whole[: len(prompt_ids)] != prompt_ids:  # the template joins prompt and answer: tokenize the answer alone
            return prompt_ids, [*self.tokenizer(response, add_special_tokens=False)["input_ids"], self.end_id]
        answer_ids = whole[len(prompt_ids) :]
        while answer_ids and not str(self.tokenizer.decode(answer_ids[-1])).strip():
            answer_ids.pop()  # a line break behind the end token is not part of the answer
        ended = bool(answer_ids) and answer_ids[-1] in self.tokenizer.all_special_ids  # Gemma's turn ends without eos
        return prompt_ids, answer_ids if ended else [*answer_ids, self.end_id]

    def _render(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> list[int]:
        extra: dict[str, Any] = {} if self.prompt.date_string is None else {"date_string": self.prompt.date_string}
        ids = self.tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=False, add_generation_prompt=add_generation_prompt, **extra
        )
        assert isinstance(ids, list)
        return ids  # type: ignore[return-value]


def pad(encoded: Sequence[Encoded]) -> Rows:
    """A block of rows, padded right with id 0, which is masked everywhere."""
    length = max((len(row.prompt) + len(row.answer) for row in encoded), default=1)
    shape = (len(encoded), length)
    input_ids, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORE_INDEX)
    attention_mask, reference = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    known = bool(encoded) and all(row.reference_logps is not None for row in encoded)
    for index, row in enumerate(encoded):
        begin, end = len(row.prompt), len(row.prompt) + len(row.answer)
        input_ids[index, :end] = torch.tensor(row.prompt + row.answer)
        attention_mask[index, :end] = 1
        labels[index, begin:end] = torch.tensor(row.answer)
        if known and row.reference_logps:
            reference[index, begin:end] = torch.tensor(row.reference_logps)
    return Rows(
        input_ids,
        attention_mask,
        labels,
        torch.tensor([row.id for row in encoded], dtype=torch.int64),
        torch.tensor([row.weight for row in encoded], dtype=torch.float32),
        reference if known else None,
    )
