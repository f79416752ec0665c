"""Batches that are halved where memory is short, for work whose results do not depend on its batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from lit_unlearn.errors import UserError, is_out_of_memory

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Halving(Generic[Item, Result]):
    """Runs one batch after another, in parts of what was found to fit.

    Every rank finds that for itself: nothing it does with a batch waits for another rank.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]], what: str) -> None:
        """``run``: what comes of a batch, of each item the same whatever stands beside it. ``what``: the items."""
        self.run, self.what = run, what
        self.size: int | None = None

    def __call__(self, batch: Sequence[Item]) -> list[Result]:
        """What comes of its parts, in order.

        Raises:
            UserError: memory does not suffice for a single item.
        """
        results: list[Result] = []
        done = 0
        while done < len(batch):
            part = batch[done:][: self.size]
            found = self._tried(part)
            if found is not None:
                results += found
                done += len(part)
                continue
            # Out of the handler of the error, whose traceback holds the tensors that filled the memory.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.size = len(part) // 2
            log.warning("out of memory with %d %s at once: going on with %d", len(part), self.what, self.size)
        return results

    def _tried(self, part: Sequence[Item]) -> Sequence[Result] | None:
        """None: it does not fit."""
        try:
            return self.run(part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) > 1:
                return None
            raise UserError(
                f"out of memory with a single one of the {self.what}; make them shorter (evaluation.max_new_tokens, "
                "beliefs.max_new_tokens, data.max_length), spread the model (strategy.name) or take a larger device"
            ) from error
