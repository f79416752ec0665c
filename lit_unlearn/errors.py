"""What goes wrong by the user's hand; ``console.start`` tells it in one line."""


class UserError(ValueError):
    """A fault the user can mend; the message says what, where and what to do."""


class NonFiniteLoss(UserError):
    """A term of the loss, or a weight, is NaN or infinite; the last checkpoint is from before."""


def is_of_another_process(error: BaseException) -> bool:
    """Whether it only says that a process of the same run is gone or does not answer, as gloo and NCCL put it."""
    words = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of this process on a CPU; torch tells both by their words only."""
    words = ("out of memory", "can't allocate memory")
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return told or isinstance(error, MemoryError)
