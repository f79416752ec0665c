"""Where the prompt's tokens end and the answer's begin, when both are tokenized as one text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from lit_unlearn.data.template import STAND_IN


@dataclass(frozen=True, slots=True)
class Beginning:
    """A prompt as tokens that are the same whatever is answered."""

    ids: tuple[int, ...]
    rest: str
    """Blanks at its end, which the tokens leave to the answer: the trainers of the field make ``:``, `` The``."""


@dataclass(frozen=True)
class Boundary:
    """Cuts joint texts of a prompt and its answer.

    Prompt and answer are tokenized together, as the trainers of the field do, and generation starts from the very
    tokens that stand before the answer in training.
    """

    tokenizer: PreTrainedTokenizerBase
    ends: Sequence[int]
    """Tokens that no answer's text may turn into."""

    def begin(self, before: str) -> Beginning:
        """Tokens of ``before`` up to its trailing blanks, as they are when an answer follows.

        Fast tokenizers say which characters a token covers, and the cut is made in front of a stand-in for the answer.
        Where a token would reach over the cut, and with slow tokenizers, ``before`` is tokenized alone.
        """
        stem = before.rstrip(" ")
        ids = self._ids(stem)
        if self.tokenizer.is_fast:
            whole = self.tokenizer(before + STAND_IN, add_special_tokens=False, return_offsets_mapping=True)
            spans = whole["offset_mapping"]
            count = next(place for place, (_, end) in enumerate(spans) if end > len(stem))
            if spans[count][0] >= len(stem):
                ids = whole["input_ids"][:count]
        return Beginning(tuple(ids), before[len(stem) :])

    def answer(self, before: str, beginning: Beginning, content: str) -> tuple[int, ...]:
        """Tokens of ``content`` behind the prompt's, without an end.

        An answer that would change the prompt's last token (a line break behind one, say) is tokenized as a text of
        its own; so is one that spells control tokens, which stay what they are: text.
        """
        joint = self._ids(before + content)
        count = len(beginning.ids)
        if self._control.search(content) or tuple(joint[:count]) != beginning.ids:
            return tuple(self._spelled(beginning.rest + content))
        return tuple(joint[count:])

    @cached_property
    def lead(self) -> tuple[int, ...]:
        """What the tokenizer puts before every text: the beginning of sequence, mostly. What it appends is left out."""
        bare, whole = self._ids(STAND_IN), self.tokenizer(STAND_IN)["input_ids"]
        place = next(first for first in range(len(whole)) if whole[first : first + len(bare)] == bare)
        return tuple(whole[:place])

    @cached_property
    def _control(self) -> re.Pattern[str]:
        added = self.tokenizer.added_tokens_decoder
        names = {str(token) for id, token in added.items() if token.special or id in self.ends}
        names = {name for name in names | set(self.tokenizer.all_special_tokens) if len(name) > 1}
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")

    def _spelled(self, text: str) -> list[int]:
        """Tokens of a text that stands behind others; a control token's name is cut behind its first character."""
        found = self._control.search(text)
        if found is not None:
            cut = found.start() + 1
            return self._spelled(text[:cut]) + self._spelled(text[cut:])
        anchor, behind = self._ids("\n"), self._ids("\n" + text)  # else SentencePiece would begin it with a blank
        return behind[len(anchor) :] if behind[: len(anchor)] == anchor else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
