"""Which step's weights are kept, and on which questions that is decided."""
