"""What goes wrong by the user's hand; ``console.start`` tells it in one line."""


class UserError(ValueError):
    """A fault the user can mend; the message says what, where and what to do."""


class NonFiniteLoss(UserError):
    """A term of the loss, or a weight, is NaN or infinite; the last checkpoint is from before."""


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of this process on a CPU; torch tells both by their words only."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))
