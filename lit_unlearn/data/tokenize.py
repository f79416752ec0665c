"""Text to token ids and labels: the only place that renders prompts and masks them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import PreTrainedTokenizerBase

from lit_unlearn.benchmarks.base import Example
from lit_unlearn.data.boundary import Beginning, Boundary
from lit_unlearn.data.ends import AnswerEnd
from lit_unlearn.data.settings import PromptConfig
from lit_unlearn.data.template import STAND_IN, Conversation, Frame
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
    """Renders examples with the model's own chat template, or as plain text where it has none.

    Labelled are the answer's own tokens and one end token; all that the template puts before the answer is prompt, and
    what it puts behind the end token is left out.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    prompt: PromptConfig = field(default_factory=PromptConfig)
    ends: tuple[int, ...] = ()
    """Tokens at which the model says it stops, beside the template's and the tokenizer's."""
    vocabulary: int | None = None
    """Tokens that the model knows; None: all that the tokenizer has."""

    def encode(self, examples: Iterable[Example], name: str) -> list[Encoded]:
        """Token ids of a split; ``name`` is told where a row does not fit.

        Raises:
            UserError: a prompt alone reaches ``max_length``, or the chat template refuses a row.
        """
        encoded, cut = [], 0
        for example in examples:
            try:
                prompt, answer = self._ids(example.prompt, example.response)
            except UserError as error:
                raise UserError(f"{name}, row {example.id}: {error}") from error
            room = self.max_length - len(prompt)
            if room < 1:
                raise UserError(
                    f"{name}, row {example.id}: the prompt has {len(prompt)} tokens, data.max_length is "
                    f"{self.max_length}; raise data.max_length or drop the row"
                )
            if self.vocabulary is not None and max(*prompt, *answer) >= self.vocabulary:
                raise UserError(
                    f"{name}, row {example.id}: the tokenizer writes the id {max(*prompt, *answer)}, and the model has "
                    f"{self.vocabulary} tokens; take the tokenizer that belongs to the model"
                )
            cut += len(answer) > room
            encoded.append(Encoded(example.id, prompt, answer[:room]))
        if cut:
            log.warning("%s: %d answers were cut to data.max_length=%d tokens", name, cut, self.max_length)
        return encoded

    @cached_property
    def end(self) -> AnswerEnd:
        """Where answers end."""
        frame = self._conversation.frame(STAND_IN)
        if self._conversation.source is not None:
            opening = self._conversation.opening(STAND_IN)
            if not frame.before.startswith(opening.rstrip()):
                log.warning(
                    "the chat template begins a new answer with %r, but prints a given one behind %r: prompts end "
                    "with the latter, in training and in generation",
                    opening[-40:],
                    frame.before[-40:],
                )
        return AnswerEnd.of(self.tokenizer, frame.after, self.ends)

    def _ids(self, prompt: str, response: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        frame, beginning = self._begin(prompt)
        content = self._conversation.content(prompt, response, frame)
        said = self._boundary.answer(frame.before, beginning, content) if content.strip() else ()
        lead = self._boundary.lead if self._conversation.source is None else ()  # chat templates print it themselves
        if beginning.ids[: len(lead)] == lead:
            lead = ()
        return lead + beginning.ids, (*said, self.end.id)

    def _begin(self, prompt: str) -> tuple[Frame, Beginning]:
        if prompt not in self._begun:
            frame = self._conversation.frame(prompt)
            self._begun[prompt] = frame, self._boundary.begin(frame.before)
        return self._begun[prompt]

    @cached_property
    def _conversation(self) -> Conversation:
        return Conversation(self.tokenizer, self.prompt)

    @cached_property
    def _boundary(self) -> Boundary:
        return Boundary(self.tokenizer, self.end.stops)

    @cached_property
    def _begun(self) -> dict[str, tuple[Frame, Beginning]]:
        return {}  # probes put one question to many answers


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
