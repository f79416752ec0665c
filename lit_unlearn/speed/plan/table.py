"""The memory plan of every combination that exists, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lit_unlearn.memory.presets import CUT, PRESETS
from lit_unlearn.memory.size import ModelSize, Parts, smallest_card
from lit_unlearn.memory.step import lora_parts, step_parts
from lit_unlearn.memory.tokens import Tokens
from lit_unlearn.speed.table import columns

GPUS = (1, 2, 4, 8)
WAYS = {"ddp": ("ddp", "none")} | {name: (name, "none") for name in CUT}
WAYS |= {"zero2, moments on the host": ("zero2", "optimizer"), "zero3, moments on the host": ("zero3", "optimizer")}
WAYS["zero3, weights too"] = ("zero3", "parameters")
"""Rows of the plan of ``adamw``: strategy and offload."""
LORA: dict[str, tuple[str, str | None]] = {
    "lora r16, adamw": ("adamw", None),
    "lora r16, adamw_8bit": ("adamw_8bit", None),
    "lora r16, nf4 base, adamw_8bit": ("adamw_8bit", "nf4"),
}
"""Optimizer, and what the base is held in where that is not the optimizer's choice."""


def plan_json(size: ModelSize, tokens: Tokens, cards: list[int], checkpointing: bool = False) -> dict[str, Any]:
    """Every combination that exists: parts, peak of each moment, total and the smallest card.

    ``checkpointing``: of our path; the plain recipe keeps its activations.
    """

    def told(parts: Parts) -> dict[str, Any]:
        total = parts.total
        return asdict(parts) | {"moments": parts.moments, "total": total, "card": smallest_card(total, cards)}

    found: dict[str, Any] = {"model": asdict(size), "tokens": asdict(tokens), "presets": {}}
    for preset, kind in PRESETS.items():
        plain = step_parts(size, preset, tokens, resident=True, plain=True)
        ways = WAYS if preset == "adamw" else {"ddp": ("ddp", "none")}
        found["presets"][preset] = {"about": kind.about, "plain": told(plain)} | {
            way: {
                str(n): told(
                    step_parts(
                        size,
                        preset,
                        tokens,
                        strategy=strategy,
                        num_gpus=n,
                        offload=offload,
                        checkpointing=checkpointing,
                    )
                )
                for n in ((1,) if kind.one_gpu else GPUS)
            }
            for way, (strategy, offload) in ways.items()
        }
    found["lora"] = {
        name: told(lora_parts(size, preset, tokens, base=base, checkpointing=checkpointing))
        for name, (preset, base) in LORA.items()
    }
    return found


def plan_table(plan: Mapping[str, Any]) -> str:
    """Parts on one GPU, then totals over GPUs with the smallest card that holds each."""
    names = ["weights", "gradients", "master", "states", "reference", "cast", "activations", "logits", "head"]
    names += ["passing", "workspace"]
    parts = [["GiB on one GPU", *names, "peak", "at", "fits on", "host"]]
    totals = [["GiB a GPU (card GB)", *(f"{n} GPU{'s' * (n > 1)}" for n in GPUS), f"host GiB a GPU, {GPUS[-1]} GPUs"]]

    def line(name: str, found: Mapping[str, Any]) -> list[str]:
        at = max(found["moments"], key=lambda moment: found["moments"][moment])
        return [name, *(f"{found[n]:.1f}" for n in [*names, "total"]), at, _card(found), f"{found['host']:.1f}"]

    for preset, ways in plan["presets"].items():
        parts += [line(preset, ways["ddp"]["1"]), line(f"  {preset}, plain recipe", ways["plain"])]
        for way in (way for way in WAYS if way in ways and not PRESETS[preset].one_gpu):
            by_gpus = [ways[way][str(n)] for n in GPUS]
            cells = [f"{p['total']:.1f} ({_card(p)})" for p in by_gpus]
            totals.append([f"{preset} {way}", *cells, f"{by_gpus[-1]['host']:.1f}"])
    parts += [line(name, found) for name, found in plan["lora"].items()]
    about = [f"{preset}: {ways['about']}" for preset, ways in plan["presets"].items()]
    return "\n\n".join([columns(parts), columns(totals), "\n".join(about)])


def _card(parts: Mapping[str, Any]) -> str:
    return "none" if parts["card"] is None else str(parts["card"])
