"""Weak scaling on paper: the same rows a GPU on more and more GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lit_unlearn.memory.network import Network, traffic
from lit_unlearn.memory.presets import CUT
from lit_unlearn.memory.size import ModelSize
from lit_unlearn.memory.step import step_parts
from lit_unlearn.memory.tokens import Tokens
from lit_unlearn.speed.table import columns

GPUS = (2, 8, 16, 64)


def scaling_json(size: ModelSize, tokens: Tokens, network: Network, micro: int, checkpointing: bool) -> dict[str, Any]:
    """By strategy and number of GPUs: GiB, bytes sent, seconds, share of communication.

    ``tokens``: of one forward, of which a step has ``micro``.
    """
    found: dict[str, Any] = {"assumed": asdict(network) | {"micro_batches": micro, "checkpointing": checkpointing}}
    for strategy in ("ddp", *CUT):
        found[strategy] = {}
        for n in GPUS:
            parts = step_parts(
                size,
                "adamw",
                tokens,
                strategy=strategy,
                num_gpus=n,
                checkpointing=checkpointing,
                micro=micro > 1,
            )
            sent = traffic(size, tokens, strategy, n, network, micro_batches=micro, checkpointing=checkpointing)
            found[strategy][str(n)] = asdict(sent) | {
                "states_gib": parts.fixed,
                "activations_gib": parts.activations,
                "peak_gib": parts.total,
                "share": sent.share,
                "hidden_share": sent.hidden_share,
            }
    return found


def scaling_table(scaling: Mapping[str, Any]) -> str:
    """The assumptions in words, then a line a strategy and number of GPUs."""
    assumed = scaling["assumed"]
    head = ["weak scaling, adamw", "GPUs", "states GiB", "activations", "peak", "sent GB", "compute s", "sending s"]
    rows = [[*head, "share of sending"]]
    for strategy in ("ddp", *CUT):
        for n, found in scaling[strategy].items():
            gib = [f"{found[name]:.1f}" for name in ("states_gib", "activations_gib", "peak_gib")]
            sent = f"{(found['gathered'] + found['reduced']) / 1e9:.1f}"
            times = [f"{found[name]:.3f}" for name in ("compute_seconds", "seconds")]
            shares = f"{100 * found['hidden_share']:.0f}-{100 * found['share']:.0f} %"
            rows.append([strategy, n, *gib, sent, *times, shares])
    about = (
        f"assumed: {assumed['node_gpus']} GPUs a machine, {assumed['link_gbs']:g} GB/s a GPU inside, "
        f"{assumed['node_link_gbs']:g} GB/s a GPU between machines, {assumed['mfu']:.0%} of {assumed['tflops']:g} "
        f"TFLOP/s; forwards of a step: {assumed['micro_batches']}; the share is from all of it hidden behind the "
        "arithmetic to none (ZeRO as it is set up here hides none)"
    )
    return f"{columns(rows)}\n\n{about}"
