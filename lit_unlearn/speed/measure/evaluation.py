"""Teacher-forced evaluation of TOFU-like questions: a forward for each probe set and metric, against our pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lit_unlearn.data.tokenize import Encoded, pad
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.engine.body import evaluating
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.memory.tokens import count_tokens
from lit_unlearn.speed.measure.step import Turns
from lit_unlearn.speed.measure.timing import interleave, ratio, seconds
from lit_unlearn.speed.workload import plain
from lit_unlearn.speed.workload.cells import Spec, autocast
from lit_unlearn.speed.workload.models import Models
from lit_unlearn.speed.workload.rows import question_rows
from lit_unlearn.types import IGNORE_INDEX, Role

NUM_ANSWERS = 7
"""The answer, a paraphrase, five perturbed ones."""
BATCH_SIZE = 32


def evaluate(spec: Spec, models: Models, turns: Turns, num_questions: int) -> dict[str, Any]:
    """Times of both, where the mean log-probs of all answers agree."""
    forget, retain = (
        question_rows(spec.lengths, num_questions, NUM_ANSWERS, spec.shape.vocab, spec.seed + shift) for shift in (0, 1)
    )
    rows = [row for question in (*forget, *retain) for row in question]
    with evaluating(models.policy):
        error = (plain_pass(spec, models, forget, retain) - our_pass(spec, models, rows)).abs().max().item()
        passed = error < (1e-4 if spec.precision == "32-true" else 5e-2)
        result: dict[str, Any] = {
            "parity": {"passed": passed, "largest_mean_logp_error": error},
            "questions": 2 * num_questions,
            "tokens": asdict(count_tokens({Role.forget: rows})),
        }
        if not passed:
            return result
        samples = interleave(
            {
                "plain": lambda: plain_pass(spec, models, forget, retain),
                "ours": lambda: our_pass(spec, models, rows),
            },
            turns.repeats,
            turns.warmups,
            spec.device,
        )
    return result | {
        "seconds": {name: seconds(found) for name, found in samples.items()},
        "ratio": {clock: asdict(ratio(samples["plain"], samples["ours"], clock)) for clock in ("wall", "cpu")},
    }


def our_pass(spec: Spec, models: Models, rows: Sequence[Encoded]) -> Tensor:
    """Mean log-prob of each row's answer [R]."""
    with autocast(spec):
        scored = score_answers(ScoringEngine(models.policy), rows, BATCH_SIZE)
    return torch.tensor([answer.mean_logp for answer in scored])


@torch.no_grad()
def plain_pass(
    spec: Spec, models: Models, forget: Sequence[Sequence[Encoded]], retain: Sequence[Sequence[Encoded]]
) -> Tensor:
    """Mean log-prob of each row's answer [R], forget questions first, answers of a question side by side.

    Each of the seven answer sets is asked on its own, in the order of the questions and padded right, with all logits
    and two cross-entropies. Extraction strength and min-k ask the forget answers again, each with a log-softmax of all
    logits, as those metrics do in OpenUnlearning; together 16 forwards a pair of questions instead of 14.
    """
    means = [
        torch.stack(
            [_probability(spec, models, [question[choice] for question in split]) for choice in range(NUM_ANSWERS)]
        )
        for split in (forget, retain)
    ]
    for _ in ("extraction_strength", "min_k"):
        _distributions(spec, models, [question[0] for question in forget])
    return torch.cat([mean.T.flatten() for mean in means])


def _probability(spec: Spec, models: Models, rows: Sequence[Encoded]) -> Tensor:
    means = []
    for first in range(0, len(rows), BATCH_SIZE):
        block = pad(rows[first : first + BATCH_SIZE]).to(spec.device)
        with autocast(spec):
            logits = plain.forward(models.policy, block).logits  # [B, T, V]
        nll = plain.token_nll(logits, block.labels).sum(-1)
        means.append((-nll / (block.labels != IGNORE_INDEX).sum(-1)).cpu())
    return torch.cat(means)


def _distributions(spec: Spec, models: Models, rows: Sequence[Encoded]) -> None:
    for first in range(0, len(rows), BATCH_SIZE):
        block = pad(rows[first : first + BATCH_SIZE]).to(spec.device)
        with autocast(spec):
            logits = plain.forward(models.policy, block).logits[:, :-1]
        logps = logits.float().log_softmax(-1)  # [B, T - 1, V]
        labels = block.labels[:, 1:].clamp(min=0)
        (logps.argmax(-1) == labels).cpu()
        logps.gather(-1, labels[..., None]).cpu()
