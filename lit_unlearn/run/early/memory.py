"""The memory that a step is planned to take by its config, and what is told where it takes more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from lit_unlearn.callbacks.settings import BeliefConfig
from lit_unlearn.config.schema import Config
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.errors import UserError, is_out_of_memory
from lit_unlearn.memory.size import ModelSize, Parts
from lit_unlearn.memory.step import on_base, step_parts
from lit_unlearn.memory.tokens import Tokens
from lit_unlearn.strategies.build import chosen


def planned(
    config: Config,
    size: ModelSize,
    optimizer: str,
    trained: int,
    tokens: Tokens,
    micro: bool,
    resident: bool,
    base: str = "full",
) -> Parts:
    """The closed form for what a config says. ``tokens``: of one forward of one rank. ``base``: of ``model.lora``."""
    trainer = config.trainer
    parts = step_parts(
        size,
        optimizer,
        tokens,
        trained=trained,
        strategy=chosen(config.strategy, trainer.world),
        num_gpus=trainer.world,
        offload=config.strategy.offload,
        autocast=trainer.precision == "bf16-mixed",
        checkpointing=config.model.gradient_checkpointing == "full",
        resident=resident,
        micro=micro,
        logits_mib=config.model.logits_mib,
    )
    return on_base(parts, size, optimizer, None if base == "full" else base)


def with_beliefs(forget: Sequence[Encoded], beliefs: BeliefConfig) -> list[Encoded]:
    """Belief rows as long as they can be, none of whose answers share a beginning."""
    count = beliefs.num_samples if beliefs.per_step == "all" else 1
    longest = [(2 + sample,) * beliefs.max_new_tokens for sample in range(count)]
    return [replace(row, answer=answer, reference_logps=None) for row in forget for answer in longest]


@contextmanager
def within_memory(plan: str) -> Iterator[None]:
    """For a fit: where memory runs out it stops with one line that says what was ``plan`` and what takes less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory in training; planned were {plan}. What was written is kept. Start again with a smaller "
            "data.micro_batch_size (or auto), with model.gradient_checkpointing=full, or with less on a device: "
            "optim.name=adamw_8bit, model.lora, strategy.name=zero3 or fsdp2, strategy.offload"
        ) from error
