"""The body runs as far as somebody asks, and says what the model's own hidden states say."""

from typing import Any

import pytest
import torch
from torch import nn

from lit_unlearn.engine.body import decoder_blocks, run_body


@pytest.mark.parametrize(
    ("layers", "final", "run"),
    [([0], False, 1), ([2, 0], False, 3), ([1, 1], False, 2), ([3], False, 4), ([0], True, 4), ([], True, 4)],
)
def test_no_block_runs_that_nobody_asks_for(policy, make_rows, layers, final, run):
    rows, ran = make_rows((5, 3)), []
    inputs = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
    expected = policy.base_model(**inputs, output_hidden_states=True)  # its last one is behind the final norm
    for number, block in enumerate(decoder_blocks(policy)):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    outputs: list[Any] = []
    last = decoder_blocks(policy)[3].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    hidden, captured = run_body(policy, inputs, layers, final)
    last.remove()
    assert ran == list(range(run))
    assert captured.keys() == set(layers)
    for layer, found in captured.items():
        known = outputs[0] if layer == 3 else expected.hidden_states[layer + 1]
        torch.testing.assert_close(found, known.flatten(0, 1))
    assert (hidden is not None) == final
    if hidden is not None:
        torch.testing.assert_close(hidden, expected.last_hidden_state.flatten(0, 1))
    run_body(policy, inputs, [], True)
    assert ran == [*range(run), *range(4)]  # no hook of the first call is left to stop the second


@pytest.mark.parametrize("layers", [[4], [-1, 2], [0, 9]])
def test_a_block_that_is_not_there_is_refused(policy, layers):
    with pytest.raises(ValueError, match=r"layer [-\d, ]+ is asked for, but this model has decoder blocks 0 to 3"):
        run_body(policy, {}, layers, False)


def test_a_model_without_known_blocks_is_refused(policy):
    policy.model.layers = nn.Sequential(*policy.model.layers)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: none of its 0 lists of modules holds its . blocks"):
        decoder_blocks(policy)
