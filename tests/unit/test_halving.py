"""Memory that really ends: a process of its own with a limit on its address space."""

import subprocess
import sys

import pytest

from lit_unlearn.errors import UserError
from lit_unlearn.halving import Halving

SCRIPT = """
import logging, resource, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.generation.generate import Prompt, generate

torch.set_num_threads(1)
torch.manual_seed(0)
logging.basicConfig(level=logging.WARNING, format="%(message)s")
shape = dict(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, max_position_embeddings=4096)
model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=1, pad_token_id=0, eos_token_id=1)).eval()
engine = ScoringEngine(model)
rows = [Encoded(i, (2 + i % 60, 2 + i // 60), tuple(2 + (i + t) % 61 for t in range(400))) for i in range(96)]
prompts = [Prompt(row.prompt + row.answer[:60]) for row in rows]
read = lambda size: (generate(model, prompts, [1], 3, size), score_answers(engine, rows, size))
generate(model, prompts[:2], [1], 2, 2)
one_by_one = read(4)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
spoken, scored = read(96)
assert spoken == one_by_one[0]
for one, other in zip(scored, one_by_one[1], strict=True):
    assert max(abs(a - b) for a, b in zip(one.logps, other.logps)) < 1e-4
"""


@pytest.mark.slow
def test_answers_are_the_same_where_memory_ends():
    done = subprocess.run([sys.executable, "-c", SCRIPT, "8"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for what in ("score", "generate"):
        assert f"out of memory with 96 answers to {what} at once: going on with 48" in done.stderr


def run(batch):
    if len(batch) > 3:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    return [item * item for item in batch]


def test_a_size_that_does_not_fit_is_not_tried_again(caplog):
    fitting = Halving(run, "numbers")
    assert fitting(range(10)) == [item * item for item in range(10)]
    assert fitting(range(10, 14)) == [100, 121, 144, 169]
    assert [record.args for record in caplog.records] == [(10, "numbers", 5), (5, "numbers", 2)]


def test_one_that_does_not_fit_is_told_and_other_errors_pass():
    def fails(error):
        def run(batch):
            raise error

        return Halving(run, "numbers")

    with pytest.raises(UserError, match="out of memory with a single one of the numbers"):
        fails(MemoryError())([1, 2, 3])
    with pytest.raises(RuntimeError, match="another"):
        fails(RuntimeError("another"))([1, 2, 3])
