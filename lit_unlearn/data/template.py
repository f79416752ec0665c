"""The text around an answer: read off what the chat template itself prints, or the plain prompt where there is none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lit_unlearn.data.settings import PromptConfig
from lit_unlearn.errors import UserError

STAND_IN = "Answer"
"""Takes an answer's place, to see what stands around it and where its first token begins."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the answer to one question."""

    before: str
    """Everything up to the answer's first character: think blocks belong to the prompt."""
    after: str
    """From behind its last character to the end of the conversation."""


@dataclass(frozen=True)
class Conversation:
    """Writes a question and its answer as the model was taught to read them.

    Raises:
        UserError: a setting that this template does not read.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PromptConfig

    def __post_init__(self) -> None:
        config, source = self.config, self.source
        if source is None and (config.system_prompt is not None or config.template_options):
            raise UserError(
                "data.prompt.system_prompt and template_options are read by chat templates, and this model has none: "
                "remove them, and write what every prompt begins with into data.prompt.plain"
            )
        unread = [name for name in config.template_options if source is not None and name not in source]
        if unread:
            raise UserError(
                f"data.prompt.template_options.{unread[0]}: this model's chat template reads nothing of that name; "
                "remove it"
            )
        if config.system_prompt and config.system_prompt.strip() not in self.frame(STAND_IN).before:
            raise UserError("data.prompt.system_prompt: this model's chat template leaves it out; set it to null")

    @cached_property
    def source(self) -> str | None:
        """The chat template, with its clock stopped at ``data.prompt.date``."""
        if self.tokenizer.chat_template is None:
            return None
        source = self.tokenizer.get_chat_template(tools=self.config.template_options.get("tools"))
        if self.config.date is None or "strftime_now" not in source:
            return source
        return stopped_clock(date.fromisoformat(self.config.date)) + source

    def frame(self, prompt: str) -> Frame:
        """The text around any answer to ``prompt``; it does not depend on the answer.

        Raises:
            UserError: the template refuses the conversation, or prints the answer not once.
        """
        if self.source is None:
            return Frame(self.config.plain.format(prompt=prompt), "")
        stand_in, around = STAND_IN, f"{prompt} {self.config.system_prompt} {self.config.template_options}"
        while stand_in in around or stand_in in self.source:
            stand_in += "r"
        parts = self._render(prompt, stand_in).split(stand_in)
        if len(parts) != 2:
            raise UserError(f"the chat template prints the answer {len(parts) - 1} times, so its place is not known")
        return Frame(*parts)

    def content(self, prompt: str, answer: str, frame: Frame) -> str:
        """The answer as it is printed: some templates trim it.

        Raises:
            UserError: the template makes something else of it, as some do with ``</think>``.
        """
        if self.source is None:
            return answer
        if not answer.strip():  # some templates leave such a turn out
            return ""
        text = self._render(prompt, answer)
        printed = text[len(frame.before) : len(text) - len(frame.after)]
        if text != frame.before + printed + frame.after or printed.strip() != answer.strip():
            raise UserError(
                f"the chat template does not print the answer {_short(answer)} as it is given; change that text"
            )
        return printed

    def opening(self, prompt: str) -> str:
        """The template's own beginning of an answer that is still to come."""
        return self._render(prompt, None)

    def _render(self, prompt: str, answer: str | None) -> str:
        turns = [{"role": "user", "content": prompt}]
        if self.config.system_prompt is not None:
            turns.insert(0, {"role": "system", "content": self.config.system_prompt})
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        options: dict[str, Any] = dict(self.config.template_options)
        try:
            text = self.tokenizer.apply_chat_template(
                turns, chat_template=self.source, tokenize=False, add_generation_prompt=answer is None, **options
            )
        except (TemplateError, TypeError, ValueError) as error:  # a template may do anything Python can
            hint = "" if self.config.system_prompt is None else "; if it knows no system turn, set system_prompt=null"
            reason = " ".join(str(error).split())
            raise UserError(f"the chat template refuses data.prompt's conversation ({reason}){hint}") from error
        assert isinstance(text, str)
        return text


def stopped_clock(day: date) -> str:
    """Template text that hides transformers' ``strftime_now``, which reads the clock, behind one that says ``day``.

    Templates of the Llama-3.2 kind print today's date where nobody gives one.
    """
    steps = [f"replace({json.dumps(f'%{d}')}, {json.dumps(day.strftime(f'%{d}'))})" for d in _DIRECTIVES]
    return "{%- macro strftime_now(format) -%}{{ " + " | ".join(["format", *steps]) + " }}{%- endmacro -%}"


_DIRECTIVES = (*(f"-{letter}" for letter in "dmyHIMSj"), *"aAbBcdDeFGgHhIjmMnpRSTtuUVwWxXyYzZ")
"""Of ``strftime``; its hours are those of midnight."""


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
