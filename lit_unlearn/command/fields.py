"""``SECTION=?``: the settings of a section with type, default and meaning, read off its dataclass."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import textwrap
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lit_unlearn.errors import UserError

Families = Mapping[str, str]
"""Key of a section whose values are chosen by name -> ``package.module:TABLE``; ``*`` stands for any one name."""


def explain(schema: type, key: str, families: Families) -> str:
    """The section or the field that ``key`` names.

    Raises:
        UserError: there is none of that name; the choices are told.
    """
    return _walk(schema, key.split("."), [], families)


def _walk(hint: Any, parts: list[str], path: list[str], families: Families) -> str:
    """Down from what ``path`` leads to, whose type is ``hint``, along ``parts``."""
    family = next((address for pattern, address in families.items() if _matches(pattern, path)), None)
    if family is not None:
        return _family(family, ".".join(path), parts)
    kind = _inner(hint)
    assert kind is not None
    if get_origin(hint) is dict:  # of things with names of the user's own
        return _walk(kind, parts[1:], [*path, parts[0] if parts else "NAME"], families)
    if not parts:
        return section(kind, ".".join(path), ".".join([*path, ""]))
    known, hints = {field.name: field for field in fields(kind)}, get_type_hints(kind)
    if parts[0] not in known:
        where = f"{'.'.join(path)} has no setting" if path else "there is no section"
        raise UserError(f"{where} {parts[0]!r}; choose among {', '.join(known)}")
    here = [*path, parts[0]]
    if _inner(hints[parts[0]]) is not None or any(_matches(pattern, here) for pattern in families):
        return _walk(hints[parts[0]], parts[1:], here, families)
    return "\n".join(_entry(kind, known[parts[0]], ".".join(here)))


def section(kind: type, title: str, prefix: str = "") -> str:
    """Every field of a dataclass, ``prefix`` before its name, under what the dataclass is."""
    about = re.split(r"\n\s*(?:Raises|Args):", inspect.getdoc(kind) or "")[0]
    lines = [f"{title}: {_paragraph(about)}", ""]
    for field in fields(kind):
        lines += _entry(kind, field, f"{prefix}{field.name}")
    return "\n".join(lines)


def _family(address: str, prefix: str, rest: list[str]) -> str:
    module, _, table = address.partition(":")
    kinds: dict[str, type] = getattr(import_module(module), table)
    if not rest:
        width = max(map(len, kinds))
        first = {name: (inspect.getdoc(kind) or "").partition("\n")[0] for name, kind in kinds.items()}
        lines = [f"  {name:<{width}}  {text}" for name, text in first.items()]
        return "\n".join([f"{prefix}: one of these by name; {prefix}.NAME=? shows its settings", "", *lines])
    if rest[0] not in kinds:
        raise UserError(f"{prefix}.{rest[0]}=?: unknown; choose among {', '.join(sorted(kinds))}")
    return section(kinds[rest[0]], f"{prefix} ({rest[0]})")


def _entry(kind: type, field: Field, name: str) -> list[str]:
    head = f"  {name}  {_type(get_type_hints(kind)[field.name])}  = {_default(field)}"
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    text = _field_docs(kind).get(field.name, "")
    return [head, *textwrap.wrap(_paragraph(text), width, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def _field_docs(kind: type) -> dict[str, str]:
    """The string that stands below each field, of a class and its parents."""
    found: dict[str, str] = {}
    for ancestor in reversed([a for a in kind.__mro__ if is_dataclass(a)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(field.target, ast.Name):
                found[field.target.id] = str(ast.literal_eval(below.value))
    return found


def _type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(_type(part) for part in get_args(hint))
    if hint is type(None):
        return "null"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(member.value for member in hint)
    if is_dataclass(hint):
        return "section"
    return getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint).replace("typing.", "")


def _default(field: Field) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING or value == "???":
        return "required"
    if is_dataclass(value):
        return "its own defaults"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value.value if isinstance(value, Enum) else value)


def _inner(hint: Any) -> type | None:
    """The dataclass behind ``X``, ``X | None`` or ``dict[str, X | None]``."""
    if is_dataclass(hint) and isinstance(hint, type):
        return hint
    return next((inner for part in get_args(hint) if (inner := _inner(part)) is not None), None)


def _matches(family: str, path: list[str]) -> bool:
    pattern = family.split(".")
    return len(pattern) == len(path) and all(p in ("*", part) for p, part in zip(pattern, path, strict=True))


def _paragraph(text: str) -> str:
    return " ".join(text.replace("``", "").split())
