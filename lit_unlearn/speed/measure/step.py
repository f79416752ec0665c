"""One cell, measured: the gate, the turns, tokens a second, useful MFU; and the optimizer's step on its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lit_unlearn.speed.measure.flops import useful_flops
from lit_unlearn.speed.measure.parity import TOLERANCES, check
from lit_unlearn.speed.measure.timing import interleave, ratio, seconds
from lit_unlearn.speed.workload.cells import PATHS, Cell, Path
from lit_unlearn.training.optim import adamw
from lit_unlearn.training.settings import OptimConfig


@dataclass(frozen=True, slots=True)
class Turns:
    """How often everything is timed."""

    repeats: int
    warmups: int


def step_cell(cell: Cell, turns: Turns, flops_per_second: float) -> dict[str, Any]:
    """What a user reads about a cell; no time of paths that do not agree."""
    parity = check(cell)
    passed = parity.within(TOLERANCES[cell.spec.precision])
    result: dict[str, Any] = {
        "parity": {"passed": passed, **asdict(parity)},
        "tokens": asdict(cell.tokens),
        "second_model": dict(cell.resident_in_run),
    }
    if not passed:
        return result | {"failed": "paths disagree"}
    policy, device = cell.models.policy, cell.spec.device
    samples = interleave(
        {path: _stepper(cell, path) for path in PATHS},
        turns.repeats,
        turns.warmups,
        device,
        before=lambda: policy.zero_grad(set_to_none=True),
    )
    policy.zero_grad(set_to_none=True)
    flops = useful_flops(cell.spec.shape, cell.tokens, cell.terms)
    times = {path: seconds(samples[path]) for path in PATHS}
    return result | {
        "seconds": times,
        "ratio": {clock: asdict(ratio(samples["plain"], samples["ours"], clock)) for clock in ("wall", "cpu")},
        "real_tokens_per_second": {path: cell.tokens.real / times[path]["wall"] for path in PATHS},
        "useful_tflop": flops / 1e12,
        "useful_mfu": {path: flops / times[path]["wall"] / flops_per_second for path in PATHS},
    }


def _stepper(cell: Cell, path: Path):
    return lambda: cell.step(path)


def optimizer_seconds(cell: Cell, turns: Turns) -> dict[str, float]:
    """AdamW on the gradients of one step of ours; frees them and its state again. The policy moves by nothing."""
    policy = cell.models.policy
    policy.zero_grad(set_to_none=True)
    cell.step("ours")
    optimizer = adamw(policy.parameters(), OptimConfig(lr=1e-30))
    samples = interleave({"optimizer": optimizer.step}, turns.repeats, turns.warmups, cell.spec.device)
    policy.zero_grad(set_to_none=True)
    return seconds(samples["optimizer"])
