"""Settings of the rows, read before torch is."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date as Day
from typing import Any

_OURS = {"conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"}
_OURS |= {"padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"}
_OURS |= {"tokenizer_kwargs", "sanitize_control_tokens", "strftime_now"}


@dataclass
class PromptConfig:
    """How a question becomes the text the model sees."""

    system_prompt: str | None = None
    """System turn of the chat template; null: whatever the template itself does."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, e.g. ``{enable_thinking: false}``, or ``{date_string: 10 Apr 2025}``, the date
    that OpenUnlearning's Llama-3 models saw."""
    date: str | None = None
    """The day that templates which ask for it are told, as ``2025-04-10``; null: the day of the run's first start,
    which its ``config.yaml`` keeps. To evaluate a model on another day, give the day of its run."""
    plain: str = "Question: {prompt}\nAnswer: "
    """Prompt of models without a chat template."""

    def __post_init__(self) -> None:
        if self.date is not None:
            try:
                Day.fromisoformat(self.date)
            except ValueError as error:
                raise ValueError(f"data.prompt.date={self.date} is no day; write it as 2025-04-10") from error
        ours = sorted(_OURS & self.template_options.keys())
        if ours:
            raise ValueError(f"data.prompt.template_options.{ours[0]} is set by the encoding itself; remove it")
        if self.plain.replace("{prompt}", "").count("{") or "{prompt}" not in self.plain:
            raise ValueError("data.prompt.plain must hold {prompt}, where the question goes, and no other braces")


@dataclass
class DataConfig:
    """Where the rows come from and how many make a step."""

    benchmark: dict = field(default_factory=lambda: {"name": "authors"})
    """``name`` of a benchmark and its fields."""
    batch_size: int = 32
    """Rows of each role in one optimizer step, over all ranks together."""
    micro_batch_size: Any = None
    """Rows of each role in one forward of one process; null: all of a step's; ``auto``: the most that fit, tried with
    the longest rows before the first step, under ``single`` and ``ddp``. The gradient is the whole batch's,
    for weights of losses depend on labels alone; the memory of activations falls with it."""
    max_length: int = 512
    """Tokens of prompt and answer; a longer answer is cut, a longer prompt refused."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    alternates: str = "refusals"
    """Answers to put in the forget answers' place, where a term has role: alternate. ``refusals``: one for each
    question, from ``<root>/idontknow.jsonl`` of a local TOFU, else our own; otherwise the path of a file with lines
    ``{"id": int, "alternates": [str, ...]}``, as ``python -m lit_unlearn.alternates`` writes it."""

    @property
    def given_size(self) -> int | None:
        """``micro_batch_size`` where it is a number."""
        return self.micro_batch_size if isinstance(self.micro_batch_size, int) else None

    def __post_init__(self) -> None:
        size = self.micro_batch_size
        if size not in (None, "auto") and not (type(size) is int and size >= 1):
            raise ValueError(f"data.micro_batch_size={size} must be at least 1, auto, or null for all rows")
        if self.batch_size < 1 or self.max_length < 2:
            raise ValueError(
                f"data.batch_size={self.batch_size} must be at least 1, data.max_length={self.max_length} at least 2"
            )
