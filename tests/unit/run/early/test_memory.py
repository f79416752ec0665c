"""What fits, and what is said where it does not."""

import pytest
import torch

from lit_unlearn.callbacks.settings import BeliefConfig
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.errors import UserError
from lit_unlearn.run.early.memory import with_beliefs, within_memory


def test_memory_that_runs_out_is_one_line_with_the_plan():
    told = r"planned were 3 GiB.*micro_batch_size.*gradient_checkpointing.*optim\.name"
    with pytest.raises(UserError, match=told), within_memory("3 GiB"):
        torch.empty(2**60, dtype=torch.uint8)  # more than any machine gives
    with pytest.raises(RuntimeError, match="shape"), within_memory("3 GiB"):
        _ = torch.ones(2) @ torch.ones(3, 2, 2).reshape(4, 3)


def test_beliefs_are_as_long_as_they_can_be():
    rows = [Encoded(7, (5, 6), (9, 1), (0.1, 0.2))]
    beliefs = with_beliefs(rows, BeliefConfig(num_samples=3, per_step="all", max_new_tokens=4))
    assert [(row.id, row.prompt, len(row.answer), row.reference_logps) for row in beliefs] == [(7, (5, 6), 4, None)] * 3
    assert len(with_beliefs(rows, BeliefConfig(num_samples=3, max_new_tokens=4))) == 1
