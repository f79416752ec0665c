"""Numbers no formula can take: NaN and infinities in any field, and fields outside their formula's range."""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from lit_unlearn.callbacks.schedules import SCHEDULES
from lit_unlearn.command.arguments import parse
from lit_unlearn.config.build import build
from lit_unlearn.config.load import load
from lit_unlearn.config.schema import Config
from lit_unlearn.errors import UserError
from lit_unlearn.objectives import OBJECTIVES

NEEDED = {"jensun": {"target_tokens": [1]}, "constraint_nll": {"eps": 0.1}, "anneal": {"k": 1.0}}
NEEDED["retain_selection"] = {"keep_fraction": 0.5}


def float_fields(kind: type, prefix: str = "") -> Iterator[str]:
    """Keys of every float of a dataclass and of those it holds."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        parts = (hint, *get_args(hint))
        inner = [part for part in parts if is_dataclass(part)]
        if inner and "dict" not in str(hint):
            yield from float_fields(inner[0], f"{prefix}{field.name}.")  # type: ignore[arg-type]
        elif float in parts:
            yield f"{prefix}{field.name}"


OF_A_RUN = list(float_fields(Config))
TABLES: tuple[dict[str, type], ...] = (OBJECTIVES, {**SCHEDULES})
OF_PARTS = [
    (table, name, field.name)
    for table in TABLES
    for name, kind in table.items()
    for field in fields(kind)
    if float in (hint := get_type_hints(kind)[field.name], *get_args(hint)) and "list" not in str(hint)
]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", OF_A_RUN)
def test_a_run_takes_finite_numbers_only(key: str, value: str):
    assert len(OF_A_RUN) > 12
    written = f"[{value}, 0.9]" if key.endswith("betas") else value
    with pytest.raises(UserError, match=key.rpartition(".")[2]):
        load(parse(["conf=quickstart", f"{key}={written}"]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("table", "name", "field"), OF_PARTS, ids=lambda part: part if isinstance(part, str) else "")
def test_objectives_and_schedules_take_finite_numbers_only(table: dict[str, type], name: str, field: str, value: float):
    assert len(OF_PARTS) > 25
    with pytest.raises(UserError, match=field):
        build({"name": name, **NEEDED.get(name, {}), field: value}, table, "here")


@pytest.mark.parametrize("name", [*OBJECTIVES, *SCHEDULES])
def test_the_defaults_are_in_range(name: str):
    table: dict[str, Any] = OBJECTIVES if name in OBJECTIVES else SCHEDULES
    required = {field.name for field in fields(table[name]) if field.default is field.default_factory is MISSING}
    assert required <= NEEDED.get(name, {}).keys()
    assert build({"name": name, **NEEDED.get(name, {})}, table, "here")
