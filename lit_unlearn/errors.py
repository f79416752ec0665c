"""What ends a run by somebody's hand; ``console.start`` tells it in one line."""


class UserError(ValueError):
    """A fault the user can mend; the message says what, where and what to do."""


class Preempted(SystemExit):
    """A scheduler has asked the run to end, which it has done in order; nobody catches it but ``console.start``."""

    CODE = 75
    """BSD's EX_TEMPFAIL: starting the command again goes on. 0 in processes that another one of the run started."""

    def __init__(self, saved: str, code: int = CODE) -> None:
        super().__init__(code)
        self.code: int = code
        self.saved, self.next = saved, ""

    def add(self, next: str) -> None:
        """What happens now, on the first rank, which tells it."""
        self.next = next

    def __str__(self) -> str:
        """One line; empty on all ranks but the first."""
        return f"preempted: {self.saved}; {self.next}" if self.next else ""


class NonFiniteLoss(UserError):
    """A term of the loss, or a weight, is NaN or infinite; the last checkpoint is from before."""


def is_of_another_process(error: BaseException) -> bool:
    """Whether it only says that a process of the same run is gone or does not answer, as gloo and NCCL put it."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    words += ("ncclRemoteError", "communicator was aborted", "collective operation timeout")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of this process on a CPU; torch tells both by their words only."""
    words = ("out of memory", "can't allocate memory")
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return told or isinstance(error, MemoryError)
