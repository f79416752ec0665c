"""Records of a model: the same for any batch size, and extraction strength without generating is the generated one."""

import pytest
import torch

from lit_unlearn.benchmarks.base import Example, Probe
from lit_unlearn.data.tokenize import Encoder
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.evaluation.base import Record
from lit_unlearn.evaluation.collect import Asking, collect, encode_probe
from lit_unlearn.evaluation.metrics.memorization import extraction_strength
from lit_unlearn.generation.generate import Prompt, generate


def test_records_do_not_depend_on_the_batch(make_model, tokenizer):
    engine = ScoringEngine(make_model(vocabulary=len(tokenizer)))
    engine.train()
    examples = [
        Example(id, "who? " * (1 + id % 3), "the book " * (1 + id % 4), choice) for id in range(5) for choice in (0, 1)
    ]
    encoder = Encoder(tokenizer, 200)
    probes = [encode_probe(encoder, Probe("forget/answer", examples, generate=True))]
    alone, together = (collect(engine, encoder, probes, Asking(6, size))["forget/answer"] for size in (1, 7))
    assert [(record.id, record.choice) for record in alone] == [(e.id, e.choice) for e in examples]
    for one, other in zip(alone, together, strict=True):
        assert one.logps == pytest.approx(other.logps, abs=1e-5)
        assert (one.greedy, one.text, one.target) == (other.greedy, other.text, other.target)
    assert engine.training
    assert all(module.training for module in engine.modules())


def test_a_cut_answer_has_no_end_token_to_leave_out(make_model, tokenizer):
    examples = [Example(0, "who?", "the book the book"), Example(1, "who?", "Ada")]
    whole = Encoder(tokenizer, 200).encode(examples, "x")[0]
    encoder = Encoder(tokenizer, len(whole.prompt) + len(whole.answer) - 1)
    probes = [encode_probe(encoder, Probe("forget/answer", examples))]
    engine = ScoringEngine(make_model(vocabulary=len(tokenizer)))
    cut, ended = collect(engine, encoder, probes, Asking(6, 2))["forget/answer"]
    assert (cut.ended, len(cut.greedy_content)) == (False, len(whole.answer) - 1)
    assert (ended.ended, len(ended.greedy_content)) == (True, len(ended.greedy) - 1)


def test_extraction_strength_is_its_generated_definition(make_model, make_encoded):
    """1 - (shortest prefix after which greedy decoding gives the rest) / length (UWC, ICLR 2025)."""
    model = make_model(vocabulary=12, scale=0.6)
    rows = make_encoded((6, 4, 8, 5, 7, 3), vocabulary=12)
    extracted = generate(model, [Prompt(row.prompt) for row in rows], [1], 9, 8)
    # Answers that the model partly knows: its own greedy answer behind a wrong first token or two.
    known = [
        row.__class__(row.id, row.prompt, (*row.answer[: index % 3], *answer[: 5 - index % 3], 1))
        for index, (row, answer) in enumerate(zip(rows, extracted, strict=True))
    ]
    strengths = set()
    for row, scored in zip(known, score_answers(ScoringEngine(model), known, 4), strict=True):
        answer = row.answer[:-1]  # the end token does not count
        shortest = next(
            k for k in range(len(answer) + 1)
            if k == len(answer) or _greedy(model, (*row.prompt, *answer[:k]), len(answer) - k) == answer[k:]
        )  # fmt: skip
        strength = extraction_strength(Record(row.id, 0, scored.logps, scored.greedy, ""), "zero")
        assert strength == pytest.approx(1 - shortest / len(answer))
        strengths.add(round(strength, 3))
    assert len(strengths) > 2


def _greedy(model, ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    for _ in range(count):
        ids = (*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(ids) - count :]
