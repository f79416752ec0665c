"""Where each weight of a model stands in its files, and any part of one; tensors are mapped into memory, not loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from lit_unlearn.models.files import weight_files
from lit_unlearn.models.streamed.skeleton import give_weights


class Place(NamedTuple):
    """A tensor of a file."""

    file: Path
    key: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return prod(self.shape)


class Stored:
    """A tensor in an open file."""

    def __init__(self, opened: Any, place: Place) -> None:
        self._opened, self._place = opened, place

    def part(self, begin: int, end: int) -> Tensor:
        """[end - begin] elements of the flattened tensor; only they are read, as whole rows."""
        if not self._place.shape:
            return self._opened.get_tensor(self._place.key).flatten()[begin:end]
        row = max(1, prod(self._place.shape[1:]))
        first, last = begin // row, -(-end // row)
        rows = self._opened.get_slice(self._place.key)[first:last]
        return rows.flatten()[begin - first * row : end - first * row]


def plain(name: str) -> str:
    """The name that a weight had before adapters were put beside it."""
    return name.replace(".base_layer.", ".")


def places(model: PreTrainedModel) -> tuple[dict[str, Place], str | None]:
    """Each weight's place, by every plain name the model has for it, and why its files cannot be read in pieces.

    The names are those that transformers gives them when it loads the files. A weight that is in none has no place.
    """
    by_key: dict[str, Place] = {}
    for file in weight_files(str(model.name_or_path)):
        with safe_open(file, "pt") as opened:
            by_key |= {key: Place(file, key, tuple(opened.get_slice(key).get_shape())) for key in sorted(opened.keys())}
    known = {plain(name): weight for name, weight in model.named_parameters(remove_duplicate=False)}
    found: dict[str, Place] = {}
    for key, name in _as_loaded(model, known, by_key):
        place = by_key[key]
        if name is None:
            return {}, f"{key} is another tensor in the model than in the files"
        if name in known and name in found:
            return {}, f"{key} and {found[name].key} are one weight"
        found[name] = place
    for names in _aliases(known):
        there = [name for name in names if name in found]
        if len(there) > 1:
            return {}, f"{' and '.join(there)} are tied and stand in the files apart"
        if there:
            found |= dict.fromkeys(names, found[there[0]])
    return {name: place for name, place in found.items() if name in known}, None


def reads_back(model: PreTrainedModel) -> bool:
    """Whether files that hold the weights by their plain names are loaded as they are."""
    known = {plain(name): weight for name, weight in model.named_parameters(remove_duplicate=False)}
    return all(name == key for key, name in _as_loaded(model, known, known))


def _as_loaded(
    model: PreTrainedModel, known: Mapping[str, nn.Parameter], keys: Iterable[str]
) -> Iterator[tuple[str, str | None]]:
    """Each key of a file and the name that transformers gives it; None where it makes another tensor of it."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    for key in keys:
        name, fused = rename_source_key(key, renamings, converters, model.base_model_prefix, dict(known))
        yield key, None if fused is not None else name


def opened_in_order(wanted: Mapping[str, Place]) -> Iterator[tuple[str, Stored]]:
    """Each name with its tensor, file after file; one file is open at a time."""
    for file in sorted({place.file for place in wanted.values()}):
        with safe_open(file, "pt") as opened:
            for name, place in wanted.items():
                if place.file == file:
                    yield name, Stored(opened, place)


def mapped(model: PreTrainedModel, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Weights by their plain names, as their files hold them, each mapped for as long as it is looked at."""
    at = places(model)[0]
    for name in names:
        with safe_open(at[name].file, "pt") as opened:
            yield name, opened.get_tensor(at[name].key)


@torch.no_grad()
def fill_whole(part: nn.Module, model: PreTrainedModel) -> None:
    """Read what ``part``, a copy of a part of ``model`` under the same names, lacks of its weights."""
    lacking = {weight: name for name, weight in part.named_parameters() if weight.is_meta}

    def whole(weight: nn.Parameter) -> nn.Parameter:
        _, tensor = next(mapped(model, [lacking[weight]]))
        return nn.Parameter(tensor.to(weight.dtype, copy=True), weight.requires_grad)

    give_weights(part, whole)


def _aliases(known: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """The names of each weight."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, weight in known.items():
        names.setdefault(weight, []).append(name)
    return list(names.values())
