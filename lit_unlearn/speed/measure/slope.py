"""How peak memory grows with the number of answer tokens, where the vocabulary head is all there is."""

from __future__ import annotations

from typing import Any

import torch

from lit_unlearn.speed.measure.memory import peak_bytes
from lit_unlearn.speed.settings import Precision
from lit_unlearn.speed.workload.cells import PATHS, Spec
from lit_unlearn.speed.workload.shapes import Shape

NUM_TOKENS = (512, 1024, 2048)
VOCABULARIES = (49152, 128256)
NUM_ROWS = 8


def slopes(
    seed: int,
    device: torch.device,
    precision: Precision,
    vocabularies: tuple[int, ...] = VOCABULARIES,
    num_tokens: tuple[int, ...] = NUM_TOKENS,
) -> dict[str, Any]:
    """Peak bytes of NPO on 8 rows under a body of one block and 64 dimensions, and bytes for each further token.

    The forget rows are all the rows, with a prompt of one token; the second model of the plain recipe is not counted.
    """
    found: dict[str, Any] = {}
    for vocab in vocabularies:
        shape = Shape(1, 64, 128, 1, 1, vocab, True)
        peaks = {
            path: [
                peak_bytes(Spec(shape, "npo_alone", NUM_ROWS, (1, 0, n // NUM_ROWS), seed, device, precision), path)
                for n in num_tokens
            ]
            for path in PATHS
        }
        spread = num_tokens[-1] - num_tokens[0]
        found[str(vocab)] = {
            "answer_tokens": list(num_tokens),
            "peak_bytes": peaks,
            "bytes_per_token": {path: (peak[-1] - peak[0]) / spread for path, peak in peaks.items()},
        }
    return found
