"""Blocks that are whole only while they run, on however many ranks and in whichever order each runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import nn

from lit_unlearn.errors import UserError, is_out_of_memory
from lit_unlearn.parallel import all_reduce_max, before_meetings

_NONE = -1
"""What a rank wants that waits for the others."""


@contextmanager
def _whole(gathered: AbstractContextManager[None]) -> Iterator[None]:
    """Raises UserError where a block finds no room: no smaller batch helps, and the others are in the gather."""
    with ExitStack() as stack:
        try:
            stack.enter_context(gathered)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                "out of memory for one whole block of the model beside what is read with it: lower "
                "evaluation.batch_size, beliefs.batch_size or squeeze.batch_size, or use more devices"
            ) from error
        yield


@contextmanager
def in_turns(
    blocks: Sequence[nn.Module], gather: Callable[[nn.Module], AbstractContextManager[None]]
) -> Iterator[None]:
    """For the body, each of ``blocks`` is gathered when it is called and cut again when it returns.

    A gather needs every rank, and ranks run other numbers of batches, of other lengths, in the body. So each call
    begins with a vote: the block highest up that any rank wants is gathered by all, whoever wants another one votes
    again, and who has come to a meeting of all ranks, or to the end of the body, takes part until all have.

    Args:
        blocks: called one at a time, none inside another; every rank names the same.
        gather: every rank must enter it; holds all weights of one block.
    """
    running = ExitStack()

    def vote(wanted: int) -> None:
        while (turn := all_reduce_max(wanted, meets=False)) != wanted:
            with _whole(gather(blocks[turn])):
                pass

    def before(number: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            vote(number)
            running.enter_context(_whole(gather(blocks[number])))

        return hook

    def after(*_: object) -> None:
        running.close()

    handles = [block.register_forward_pre_hook(before(i), prepend=True) for i, block in enumerate(blocks)]
    handles += [block.register_forward_hook(after, always_call=True) for block in blocks]
    try:
        with before_meetings(lambda: vote(_NONE)):
            yield
    finally:
        for handle in handles:
            handle.remove()
