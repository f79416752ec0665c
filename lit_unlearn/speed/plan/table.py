"""The memory plan of every combination that exists, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lit_unlearn.memory.presets import PRESETS, STRATEGIES
from lit_unlearn.memory.size import GIB, ModelSize, smallest_card
from lit_unlearn.memory.step import lora_parts, step_parts
from lit_unlearn.memory.tokens import Tokens
from lit_unlearn.speed.table import columns

GPUS = (1, 2, 4, 8)


def plan_json(size: ModelSize, tokens: Tokens, cards: list[int]) -> dict[str, Any]:
    """Every combination that exists: parts, total and the smallest card."""
    found: dict[str, Any] = {"model": asdict(size), "tokens": asdict(tokens), "presets": {}}
    for preset, kind in PRESETS.items():
        about: dict[str, Any] = {"about": kind.about, "host_gib": kind.host * size.parameters / GIB}
        for strategy in ("ddp",) if kind.one_gpu else STRATEGIES:
            about[strategy] = {}
            for num_gpus in (1,) if kind.one_gpu else GPUS:
                ours, plain = (
                    step_parts(size, preset, tokens, strategy=strategy, num_gpus=num_gpus, resident=plain, plain=plain)
                    for plain in (False, True)
                )
                about[strategy][str(num_gpus)] = {
                    "ours": asdict(ours) | {"total": ours.total, "card": smallest_card(ours.total, cards)},
                    "plain": asdict(plain) | {"total": plain.total, "card": smallest_card(plain.total, cards)},
                }
        found["presets"][preset] = about
    lora = lora_parts(size, tokens)
    found["lora"] = asdict(lora) | {"total": lora.total, "card": smallest_card(lora.total, cards)}
    return found


def plan_table(plan: Mapping[str, Any]) -> str:
    """Parts on one GPU, then totals over GPUs with the smallest card that holds each."""
    names = ["weights", "gradients", "master", "states", "reference", "cast", "activations", "logits", "workspace"]
    parts = [["GiB on one GPU", *names, "total", "fits on"]]
    totals = [["GiB a GPU (card GB)", *(f"{n} GPU{'s' * (n > 1)}" for n in GPUS)]]
    for preset, strategies in plan["presets"].items():
        for path in ("ours", "plain"):
            alone = strategies["ddp"]["1"][path]
            numbers = [f"{alone[name]:.1f}" for name in [*names, "total"]]
            parts.append([preset if path == "ours" else f"  {preset}, plain recipe", *numbers, _card(alone)])
        for strategy in STRATEGIES:
            if strategy in strategies and not PRESETS[preset].one_gpu:
                by_gpus = [strategies[strategy][str(n)]["ours"] for n in GPUS]
                totals.append([f"{preset} {strategy}", *(f"{p['total']:.1f} ({_card(p)})" for p in by_gpus)])
    lora = plan["lora"]
    parts.append(["lora r16", *(f"{lora[name]:.1f}" for name in [*names, "total"]), _card(lora)])
    totals.append(["lora r16 ddp", *[f"{lora['total']:.1f} ({_card(lora)})"] * len(GPUS)])
    about = [f"{preset}: {strategies['about']}" for preset, strategies in plan["presets"].items()]
    return "\n\n".join([columns(parts), columns(totals), "\n".join(about)])


def _card(parts: Mapping[str, Any]) -> str:
    return "none" if parts["card"] is None else str(parts["card"])
