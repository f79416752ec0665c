"""What BS-S costs: our own paths against each other, and sampling the beliefs against the steps they serve."""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import median
from typing import Any

from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.generation.generate import Prompt, Sampling, generate
from lit_unlearn.speed.measure.step import Turns
from lit_unlearn.speed.measure.timing import interleave, measure, ratio, seconds
from lit_unlearn.speed.workload.cells import Cell, Spec, autocast, build
from lit_unlearn.speed.workload.models import Models
from lit_unlearn.speed.workload.rows import question_rows

BELIEF_TOKENS = 45
"""Mean length of a belief on TOFU. A random model never stops, so every sample has exactly these."""
EPOCHS = 2
"""Between two refreshes, as published."""
BATCH_SIZE = 64


def belief_costs(spec: Spec, models: Models, turns: Turns, num_prompts: int) -> dict[str, Any]:
    """bst / grad_ascent without a retain term, bss / npo with one; and sampling one belief for each prompt.

    ``sampling_share`` is its time over that of the BS-S steps of two epochs of as many prompts.
    """
    names = ("grad_ascent", "bst_alone", "npo", "bss")
    cells = {name: build(replace(spec, objective=name), models) for name in names}
    samples = interleave(
        {name: _stepper(cell) for name, cell in cells.items()},
        turns.repeats,
        turns.warmups,
        spec.device,
        before=lambda: models.policy.zero_grad(set_to_none=True),
    )
    models.policy.zero_grad(set_to_none=True)
    clock = "wall" if spec.device.type == "cuda" else "cpu"
    step = median(getattr(sample, clock) for sample in samples["bss"])
    sampled = [getattr(_sample(spec, models, num_prompts), clock) for _ in range(2)][-1]
    return {
        "clock": clock,
        "seconds": {name: seconds(found) for name, found in samples.items()},
        "bst_over_grad_ascent": asdict(ratio(samples["bst_alone"], samples["grad_ascent"], clock)),
        "bss_over_npo": asdict(ratio(samples["bss"], samples["npo"], clock)),
        "sampling_seconds": sampled,
        "sampling_prompts": num_prompts,
        "sampling_share": sampled / (step * EPOCHS * num_prompts / spec.num_rows),
    }


def _stepper(cell: Cell):
    return lambda: cell.step("ours")


def _sample(spec: Spec, models: Models, num_prompts: int):
    questions = question_rows(spec.lengths, num_prompts, 1, spec.shape.vocab, spec.seed)
    owners = [rows[0] for rows in questions]
    prompts = [Prompt(rows[0].prompt, f"benchmark/{index}") for index, rows in enumerate(questions)]
    sampling = Sampling(temperature=0.7)

    def run() -> None:
        with autocast(spec):  # a stop token outside the vocabulary never comes
            found = generate(models.policy, prompts, [spec.shape.vocab], BELIEF_TOKENS, BATCH_SIZE, sampling)
            beliefs = [Encoded(row.id, row.prompt, tokens) for row, tokens in zip(owners, found, strict=True)]
            for model in (models.policy, models.start):  # NPO reads the reference on them too
                score_answers(ScoringEngine(model), beliefs, BATCH_SIZE)

    return measure(run, spec.device)
