"""Written settings in, typed objects out: dataclasses are the schema, a fault is one line with its full key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

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
