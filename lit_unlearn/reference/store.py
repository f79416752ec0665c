"""Scores of the frozen start on disk: written once, named by what they depend on, read row by row.

A row needs no model to be read: with the final hidden states and the start's own head every distribution over the
vocabulary is exact, at D numbers a position instead of V.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.head import Head
from lit_unlearn.engine.states import States, kept_positions, no_positions, row_weights
from lit_unlearn.errors import UserError
from lit_unlearn.models.adapters.lora import merged_weights
from lit_unlearn.models.streamed.source import mapped, plain
from lit_unlearn.types import IGNORE_INDEX, LOGPS, Ask, Role, Rows

_PART = 2**24
"""Elements of a weight that are looked at once."""
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "use_cache")


def model_digest(model: PreTrainedModel) -> str:
    """Of the config and every weight, by name, adapters folded in; about a second a GB.

    A model without its weights is as in its files, and its adapters are new: they add nothing.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_OF_THE_MODEL}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    named = model.named_parameters(remove_duplicate=False)
    empty = {plain(name): weight.dtype for name, weight in named if weight.is_meta}
    weights = mapped(model, sorted(empty)) if empty else sorted(merged_weights(model).items())
    for name, tensor in weights:
        dtype = empty.get(name, tensor.dtype)
        digest.update(f"{name} {dtype} {tuple(tensor.shape)}".encode())
        for part in tensor.detach().reshape(-1).split(_PART):  # one may have no dimension
            digest.update(part.cpu().to(dtype).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def store_key(start: str, rows: Mapping[Role, Collection[Encoded]], asks: Mapping[Role, Ask], precision: str) -> str:
    """Digest of all that the stored scores depend on; ``start`` is the model's."""
    digest = hashlib.sha256(f"1 {start} {precision}".encode())
    for role in sorted(asks):
        digest.update(json.dumps([role, asdict(asks[role])]).encode())
        for row in rows[role]:
            digest.update(repr((row.id, row.prompt, row.answer)).encode())
    return digest.hexdigest()


class ReferenceStore:
    """Reads what ``write_part`` wrote; files are mapped into memory, not loaded."""

    def __init__(self, directory: Path, key: str, asks: Mapping[Role, Ask], head: Head | None) -> None:
        """``head``: the start's own, where full distributions are asked.

        Raises:
            UserError: the files hold the scores of another model, of other rows, or are cut.
        """
        self.asks, self.head = dict(asks), head
        self.working: Head | None = None
        self.files: dict[str, object] = {}
        for path in sorted(directory.glob("*.safetensors")):
            try:
                file = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"reference scores {path} cannot be read ({error}); remove {directory}") from error
            if (file.metadata() or {}).get("key") != key:
                raise UserError(
                    f"reference scores {path} are stale: they belong to another model, other rows or another "
                    f"precision; remove {directory}"
                )
            self.files |= dict.fromkeys(file.keys(), file)

    def get(self, role: Role, id: int, what: str) -> Tensor:
        """One tensor of one row: ``logps`` [A], ``hidden`` [N, D] or ``layer_<number>`` [M, D]."""
        name = f"{role}/{id}/{what}"
        return self.files[name].get_tensor(name)  # type: ignore[attr-defined]

    def _parts(self, role: Role, ids: list[int], what: str) -> list[Tensor]:
        """Of a block without rows, nothing of the right width."""
        if ids:
            return [self.get(role, id, what) for id in ids]
        name = next(name for name in self.files if name.startswith(f"{role}/") and name.endswith(f"/{what}"))
        return [self.files[name].get_tensor(name)[:0]]  # type: ignore[attr-defined]

    def states(self, role: Role, rows: Rows) -> States:
        """What an engine of the start would give for this block."""
        ask, device = self.asks[role], rows.input_ids.device
        join = lambda what: torch.cat(self._parts(role, rows.example_id.tolist(), what)).to(device)  # noqa: E731
        row, _, labels = kept_positions(rows, ask.attended) if ask.logps else no_positions(rows)
        at_row, _ = (rows.labels != IGNORE_INDEX).nonzero(as_tuple=True)
        layers = {layer: join(f"layer_{layer}") for layer in ask.hidden_layers}
        logps = join("logps") if ask == LOGPS else None
        hidden = join("hidden") if ask.logps and logps is None else None
        head = None
        if hidden is not None:
            assert self.head is not None
            if self.working is None:  # made within the first step, whose precision it takes
                self.working = self.head.to(device)
            head = self.working
        return States(labels, row, row_weights(rows), hidden, logps, head, layers, at_row)


def stored_tensors(role: Role, ids: Iterable[int], states: States, logps: Tensor | None) -> dict[str, Tensor]:
    """One block's scores by the names they are stored under."""
    found: dict[str, Tensor] = {}
    number = len(states.row_weight)
    cut = lambda values, row: values.detach().cpu().split(torch.bincount(row.cpu(), minlength=number).tolist())  # noqa: E731
    per_row = {f"layer_{layer}": cut(hidden, states.layer_row) for layer, hidden in states.layers.items()}
    if logps is not None:
        per_row["logps"] = cut(logps, states.row)
    elif states.hidden is not None:
        assert states.head is not None
        per_row["hidden"] = cut(states.head.rounded(states.hidden), states.row)
    for what, parts in per_row.items():
        found |= {f"{role}/{id}/{what}": part.clone() for id, part in zip(ids, parts, strict=True)}
    return found


def write_part(directory: Path, part: str, tensors: dict[str, Tensor], key: str) -> None:
    """One rank's share; the file is there whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f"{part}-{os.getpid()}.tmp"  # another run may be writing the same
    save_file(tensors, unfinished, {"key": key})
    os.replace(unfinished, directory / f"{part}.safetensors")
