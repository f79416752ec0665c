"""One node of the configuration into the object it names."""

from __future__ import annotations

from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, TypeVar

from lit_unlearn.command.typed import typed
from lit_unlearn.errors import UserError

T = TypeVar("T")


def build(node: dict[str, Any], table: dict[str, type[T]], where: str) -> T:
    """``{name: npo, beta: 0.1}`` -> ``NPO(beta=0.1)``, from a table of contents or from ``package.module:Class``."""
    fields = dict(node)
    name = fields.pop("name", None)
    kind = table.get(name) if name is not None else None
    if kind is None and isinstance(name, str) and ":" in name:
        kind = _outside(name, where)
    if kind is None:
        raise UserError(
            f"{where}.name={name!r} is unknown; choose one of {', '.join(sorted(table))} or package.module:Class"
        )
    return typed(kind, f"{where} ({name})", fields)


def _outside(name: str, where: str) -> type:
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except Exception as error:  # the user's own file: whatever is wrong with it is theirs to mend
        raise UserError(f"{where}.name={name}: {type(error).__name__}: {error}") from error
    if not is_dataclass(kind) or not isinstance(kind, type):
        raise UserError(f"{where}.name={name} must be a dataclass, whose fields are its settings")
    return kind
