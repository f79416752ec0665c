"""What goes wrong by the user's hand; ``console.start`` tells it in one line."""


class UserError(ValueError):
    """A fault the user can mend; the message says what, where and what to do."""


class NonFiniteLoss(UserError):
    """A term of the loss, or a weight, is NaN or infinite; the last checkpoint is from before."""
