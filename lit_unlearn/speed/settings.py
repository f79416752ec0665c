"""What the benchmark measures and on what, as ``key=value``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_unlearn.memory.settings import Network
from lit_unlearn.models.settings import Checkpointing
from lit_unlearn.speed.workload.objectives import CELLS
from lit_unlearn.speed.workload.shapes import SHAPES

Lengths = str | tuple[int, ...]
"""``tofu``, ``muse``, or (header, question, answer): tokens of each part, the same for every row."""
LENGTHS = ("tofu", "muse")
Precision = Literal["32-true", "bf16-mixed"]
WHAT = ("step", "memory", "rmu", "bss", "evaluation", "slope")


@dataclass
class SpeedConfig:
    """One call of the benchmark; the defaults take less than ten minutes on two CPU cores."""

    what: list[str] = field(default_factory=lambda: ["step", "memory"])
    """``step``: seconds of the objectives, plain and ours; ``memory``: their peaks; ``rmu``: adds it to the objectives;
    ``bss``: ratios of our own objectives, cost of sampling beliefs; ``evaluation``; ``slope``: peak against tokens."""
    shapes: list[str] = field(default_factory=lambda: ["llama43m"])
    objectives: list[str] = field(default_factory=lambda: ["npo", "bst", "grad_diff"])
    """Names in ``workload.objectives.CELLS``, which says what each is."""
    rows: int = 8
    """Forget rows of a step, and as many retain rows."""
    lengths: Any = "tofu"
    """``tofu``, ``muse`` (2048 packed), or [header, question, answer] tokens, the same for every row."""
    repeats: int = 10
    """Timed turns, behind ``warmups`` that are not."""
    warmups: int = 3
    questions: int = 8
    """Forget questions of ``evaluation`` (and as many retain questions); prompts that ``bss`` samples beliefs for."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Of the computation, weights are float32; ``auto``: 32-true on a CPU, bf16-mixed on a GPU."""
    checkpointing: Checkpointing = "none"
    """``model.gradient_checkpointing`` of our path: none, full or selective."""
    threads: int | None = None
    """CPU threads; null: torch's choice."""
    seed: int = 0
    output: str | None = None
    """JSON file of all numbers; null: only print."""
    plan: bool = False
    """Instead of measuring: what ``model`` takes in memory, on 1 to 8 GPUs, and which of the ``cards`` hold it."""
    model: str | None = None
    """A name in ``workload.shapes.SHAPES``, or a directory or Hub id whose config.json is on this machine."""
    cards: list[int] = field(default_factory=lambda: [24, 48, 80, 141])
    """Memory of the cards in question, in GB as their makers name them."""
    micro_batches: int = 1
    """Forwards of a step in the plan, with ``rows`` each."""
    network: Network = field(default_factory=Network)
    """What the plan of many GPUs assumes of them."""
    debug: bool = False
    """Show tracebacks of user errors."""

    def __post_init__(self) -> None:
        _known("what", self.what, WHAT)
        _known("shapes", self.shapes, SHAPES)
        _known("objectives", self.objectives, CELLS)
        counts = ("rows", "repeats", "questions", "micro_batches")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.warmups < 0 or (self.threads is not None and self.threads < 1):
            raise ValueError(f"warmups={self.warmups} must not be negative, threads={self.threads} at least 1")
        if not self.cards or min(self.cards) < 1:
            raise ValueError(f"cards={self.cards} must hold sizes in GB, each at least 1")
        if self.plan != (self.model is not None):
            raise ValueError("plan=true and model=NAME go together: the plan is for one model, and only the plan is")
        self.parts()

    def cells(self) -> list[str]:
        """Objectives to measure, each once."""
        chosen = self.objectives if {"step", "memory"} & set(self.what) else []
        return list(dict.fromkeys([*chosen, *(["rmu"] if "rmu" in self.what else [])]))

    def parts(self) -> Lengths:
        """``lengths``, checked."""
        if isinstance(self.lengths, str) and self.lengths in LENGTHS:
            return self.lengths
        parts = self.lengths if isinstance(self.lengths, list) else []
        whole = len(parts) == 3 and all(type(part) is int and part >= 0 for part in parts)
        if not whole or parts[0] + parts[1] < 1 or parts[2] < 1:
            raise ValueError(
                f"lengths={self.lengths} must be {' or '.join(LENGTHS)}, or [header, question, answer] in tokens, with "
                "at least one token of prompt and one of answer"
            )
        return tuple(parts)


def _known(key: str, names: Sequence[str], table: Sequence[str] | dict[str, Any]) -> None:
    unknown = [name for name in names if name not in table]
    if unknown or not names:
        raise ValueError(f"{key}={list(names)}: choose among {', '.join(table)}")
