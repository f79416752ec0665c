"""Plain text tables of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MIB = 2**20
PATHS = ("plain", "ours")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """The first column set left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def cells_table(cells: Sequence[Mapping[str, Any]], clock: str) -> str:
    """Seconds, ratios, peaks and tokens of each cell; a cell that failed says why in place of its times."""
    head = ["cell", "plain s", "ours s", "ratio", "(min-max)", "plain MiB", "ours MiB", "ours tok/s", "ours MFU"]
    rows = [[*head, "padded", "real", "unique", "answer"]]
    for cell in cells:
        name = f"{cell['shape']} {cell['objective']}"
        peaks = [f"{cell['peak_bytes'][path] / MIB:.0f}" if "peak_bytes" in cell else "-" for path in PATHS]
        if "seconds" in cell:
            ratio = cell["ratio"][clock]
            times = [f"{cell['seconds'][path][clock]:.3f}" for path in PATHS]
            times += [f"{ratio['median']:.2f}x", f"({ratio['low']:.2f}-{ratio['high']:.2f})"]
            speed = [f"{cell['real_tokens_per_second']['ours']:.0f}", f"{100 * cell['useful_mfu']['ours']:.1f} %"]
        else:
            times, speed = ["-", "-", cell.get("failed", "-"), "-"], ["-", "-"]
        counts = [
            str(cell["tokens"][kind]) if "tokens" in cell else "-" for kind in ("padded", "real", "unique", "answer")
        ]
        rows.append([name, *times, *peaks, *speed, *counts])
    return columns(rows)


def report(results: Mapping[str, Any], clock: str) -> str:
    """Everything that was measured; ``clock`` is ``cpu`` (seconds of the process) or ``wall``."""
    machine = results["machine"]
    parts = [
        f"{machine['device']}, {machine['threads']} threads, {machine['precision']}; {clock} seconds of a forward "
        f"and a backward; MFU of {machine['ceiling_tflops']:.3f} TFLOP/s ({machine['ceiling']})"
    ]
    if results.get("cells"):
        parts.append(cells_table(results["cells"], clock))
    for shape, seconds in results.get("optimizer_seconds", {}).items():
        parts.append(f"{shape}: AdamW step {seconds[clock]:.3f} s")
    for shape, bss in results.get("bss", {}).items():
        parts.append(
            f"{shape}, ours: bst / grad_ascent {_ratio(bss['bst_over_grad_ascent'])}, bss / npo "
            f"{_ratio(bss['bss_over_npo'])}; one belief for each of {bss['sampling_prompts']} prompts "
            f"{bss['sampling_seconds']:.2f} s, {100 * bss['sampling_share']:.1f} % of two epochs' steps"
        )
    for shape, evaluation in results.get("evaluation", {}).items():
        parts.append(f"{shape}: {_evaluation(evaluation, clock)}")
    if "slope" in results:
        rows = [["peak MiB of the head alone", "vocabulary", "path", *_tokens(results["slope"]), "bytes a token"]]
        for vocab, found in results["slope"].items():
            for path in PATHS:
                peaks = [f"{peak / MIB:.0f}" for peak in found["peak_bytes"][path]]
                rows.append(["", vocab, path, *peaks, f"{found['bytes_per_token'][path]:.0f}"])
        parts.append(columns(rows))
    return "\n\n".join(parts)


def _tokens(slope: Mapping[str, Any]) -> list[str]:
    return [f"{count} tokens" for count in next(iter(slope.values()))["answer_tokens"]]


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})"


def _evaluation(evaluation: Mapping[str, Any], clock: str) -> str:
    if "seconds" not in evaluation:
        return "evaluation: paths disagree"
    times = " and ".join(f"{path} {evaluation['seconds'][path][clock]:.2f} s" for path in PATHS)
    return f"evaluation of {evaluation['questions']} questions: {times}, {_ratio(evaluation['ratio'][clock])}"
