"""Written settings in, typed objects out: dataclasses are the schema, a fault is one line with its full key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lit_unlearn.errors import UserError

T = TypeVar("T")


def read_overrides(settings: Mapping[str, str]) -> dict[str, Any]:
    """``{"optim.lr": "2e-5"}`` as nested values; each value is YAML.

    Raises:
        UserError: a value is no YAML.
    """
    try:
        read = OmegaConf.from_dotlist([f"{key}={value}" for key, value in settings.items()])
        return cast(dict[str, Any], OmegaConf.to_container(read))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"an override is not valid YAML: {' '.join(str(error).split())}") from error


def typed(kind: type[T], where: str, *layers: Mapping[str, Any]) -> T:
    """``kind`` filled from the layers, later ones winning.

    Raises:
        UserError: a key, type or value that ``kind`` does not take, or a number that is not finite; begins with
            ``where``.
    """
    for layer in layers:
        for fault in _misfits(kind, layer, ()):
            raise UserError(f"{where}: {fault}" if where else fault)
    try:
        found = cast(T, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), *layers)))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        told = (
            "is missing; it has no default" if isinstance(error, MissingMandatoryValue) else str(error).splitlines()[0]
        )
        parts = [where, str(key) if key else "", told]
    except (ValueError, TypeError) as error:  # a field's own check in __post_init__
        parts = [where, str(error)]
    else:
        faulty = next(_non_finite(found, ()), None)
        if faulty is None:
            return found
        parts = [where, faulty]
    raise UserError(": ".join(part for part in parts if part))


def _misfits(hint: Any, value: Any, path: tuple[str, ...]) -> Iterator[str]:
    """What OmegaConf refuses without its key, or in words of its own: values in the place of sections and lists."""
    if get_origin(hint) in (Union, UnionType):
        hint = next((part for part in get_args(hint) if part is not NoneType), hint)
    key, section = ".".join(path), is_dataclass(hint)
    if (section or hint is dict or get_origin(hint) is dict) and not isinstance(value, Mapping):
        if value is None or value == "???":
            return
        first = fields(hint)[0].name if is_dataclass(hint) else "name"
        asked = f"; {key}=? shows what it holds" if section else ""
        yield f"{key}={value} must be a section, {{{first}: ...}}{asked}"
    elif section:
        hints = get_type_hints(hint)
        for name, inner in value.items():
            if name in hints:
                yield from _misfits(hints[name], inner, (*path, str(name)))
    elif get_origin(hint) is dict:
        for name, inner in value.items():
            yield from _misfits(get_args(hint)[1], inner, (*path, str(name)))
    elif get_origin(hint) is tuple and get_args(hint)[-1] is not Ellipsis:
        count = len(get_args(hint))
        if not isinstance(value, list | tuple) or len(value) != count:
            yield f"{key}={value} must be a list of {count} values"


def _non_finite(node: Any, path: tuple[str, ...]) -> Iterator[str]:
    """The numbers below ``node`` that no formula can take: comparisons with NaN are False, so ranges let it pass."""
    if isinstance(node, float) and not math.isfinite(node):
        yield f"{'.'.join(path)}={node} must be a finite number"
    below: Any = ()
    if is_dataclass(node):
        below = ((field.name, getattr(node, field.name)) for field in fields(node))
    elif isinstance(node, Mapping):
        below = node.items()
    elif isinstance(node, list | tuple):
        below = enumerate(node)
    for name, value in below:
        yield from _non_finite(value, (*path, str(name)))
