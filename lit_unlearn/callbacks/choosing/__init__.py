"""Which weights of a training are kept, and when it has gone far enough."""
