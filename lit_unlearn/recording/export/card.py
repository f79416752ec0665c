"""The model card: ``README.md`` of an exported model, as the Hub and people read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

CARD = "README.md"
_PACKAGES = ("torch", "transformers", "peft", "lightning", "deepspeed", "datasets")
_ADAPTERS = "`PeftModel.from_pretrained` puts these adapters on the base."


@dataclass(frozen=True)
class Card:
    """What is told; whoever fills it in has left out what must not be known."""

    title: str
    base_model: str | None
    """Hub id; None where the base is none of the Hub's."""
    tags: Sequence[str]
    about: str
    terms: Sequence[tuple[float, str, str]]
    """Weight, name, and objective with its fields."""
    training: Sequence[str]
    data: Sequence[str]
    numbers: Mapping[str, Sequence[str]]
    """Rows of the table by their number's name: the direction that is better, then a cell for each of ``columns``."""
    columns: Sequence[str]
    limits: Sequence[str]
    settings: Mapping[str, object]
    environment: Mapping[str, object]
    """As ``environment()`` gives it."""
    adapter: bool = False
    """The directory holds adapters alone."""
    notes: Sequence[str] = field(default_factory=tuple)
    """Beneath the table."""


def render(card: Card) -> str:
    """Markdown behind a front matter of YAML. No licence is named: that of the base is not known here."""
    front: dict[str, object] = {"library_name": "peft" if card.adapter else "transformers"}
    front["pipeline_tag"] = "text-generation"
    if card.base_model is not None:
        front |= {"base_model": card.base_model, "base_model_relation": "adapter" if card.adapter else "finetune"}
    front["tags"] = list(dict.fromkeys(card.tags))
    parts = [f"---\n{_yaml(front)}---", f"# {card.title}", card.about + (f" {_ADAPTERS}" if card.adapter else "")]
    parts += ["## Method", _table(("weight", "term", "objective"), [(f"{w:g}", n, f"`{o}`") for w, n, o in card.terms])]
    parts += [_list(card.training), "## Data", _list(card.data), "## Numbers"]
    rows = [(name, *cells) for name, cells in card.numbers.items()]
    parts += [_table(("", "better", *card.columns), rows), *card.notes]
    parts += ["## Limits", _list(card.limits), "## Settings", f"```yaml\n{_yaml(card.settings)}```"]
    return "\n\n".join([*parts, _made_with(card.environment)]) + "\n"


def _made_with(environment: Mapping[str, object]) -> str:
    packages, git = environment["packages"], environment["git"]
    assert isinstance(packages, Mapping)
    known = [f"{name} {packages[name]}" for name in _PACKAGES if packages.get(name)]
    commit = ""
    if isinstance(git, Mapping):
        commit = f" at commit {git['commit']}{', with changes' if git['dirty'] else ''}"
    return f"Made by lit_unlearn{commit}, Python {environment['python']}, {', '.join(known)}."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _yaml(tree: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=110)
