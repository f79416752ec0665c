"""Where an answer ends: the one definition behind labels, stopping, beliefs, beams and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class AnswerEnd:
    """The end of an answer, of one model with its tokenizer and its template."""

    tokenizer: PreTrainedTokenizerBase
    id: int
    """The token behind every labelled answer."""
    stops: tuple[int, ...]
    """Tokens at which a generated answer ends: ``id`` first, then what else the model may end with."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, after: str, others: Sequence[int] = ()) -> AnswerEnd:
        """``after``: what the template puts behind an answer; ``others``: ends that the model itself names.

        The end is the first control token in ``after``, listed as special or not: ``<|im_end|>`` in the ChatML of a
        base model whose own end is ``<|endoftext|>``, ``<end_of_turn>`` of Gemma. Where there is none, as in plain
        prompts, it is the tokenizer's end of sequence. What else stands in ``after`` is no part of the answer.
        """
        added = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items()}
        behind = tokenizer(after, add_special_tokens=False)["input_ids"]
        own = tokenizer.eos_token_id
        assert isinstance(own, int)
        end = next((id for id in behind if added.get(id, "").strip()), own)
        return cls(tokenizer, end, tuple(dict.fromkeys([end, own, *others])))

    def content(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens before the end."""
        return tuple(takewhile(lambda id: id not in self.stops, ids))

    def text(self, ids: Sequence[int]) -> str:
        """What an answer says, without the blanks around it; empty where it ends at once."""
        text = self.tokenizer.decode(
            list(self.content(ids)), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text.strip()
