"""The table of objectives as text: what they need, their fields and their papers."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from dataclasses import MISSING, Field, fields
from typing import Any

from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.types import Ask, Role

WIDTH = 120
LEGEND = (
    "Needs are those of the default fields: what is computed where a term uses the objective. An objective with a "
    "field `role` takes role=belief too and then needs sampled beliefs (beliefs.*); BS-S is a base objective on both "
    "roles. A reference that is read for log-probs only is cached, else a second model is kept."
)
EXAMPLES: dict[str, Any] = {"eps": 0.3, "target_tokens": [0]}
"""Values for fields without a default, to ask an objective what it needs."""
SOURCES = {Role.belief: "sampled beliefs (beliefs.*)", Role.alternate: "alternate answers (data.alternates)"}


def table() -> str:
    """A legend, then for each objective name and paper on a line, its needs and its fields."""
    legend = textwrap.fill(LEGEND, WIDTH)
    return "\n\n".join([legend, *(entry(name, kind) for name, kind in OBJECTIVES.items())])


def entry(name: str, kind: type) -> str:
    heading = f"{name:<{WIDTH - len(paper(kind))}}{paper(kind)}".rstrip()
    written = ", ".join(f"{field.name}={default(field)}" for field in fields(kind)) or "none"
    return "\n".join([heading, *_wrapped("needs", "; ".join(needs(kind))), *_wrapped("fields", written)])


def needs(kind: type) -> list[str]:
    """``policy: forget (log-probs), retain (logits)``, ``reference: ...``, with the defaults of the fields."""
    wanted = kind(**{field.name: EXAMPLES[field.name] for field in fields(kind) if default(field) == "required"}).needs
    return [
        f"{model}: " + ", ".join(f"{role.value} ({describe(ask)})" for role, ask in asked.items())
        for model, asked in (("policy", wanted.policy), ("reference", wanted.reference))
        if asked
    ] + [source for role, source in SOURCES.items() if role in wanted.policy]


def describe(ask: Ask) -> str:
    """In the words of the guide: log-probs, distributions, hidden states."""
    parts = ["log-probs"] if ask.logps and not ask.logits else []
    parts += [f"top-{ask.top_k}"] if ask.top_k else []
    parts += ["distributions"] if ask.logits else []
    parts += ["entropy"] if ask.entropy else []
    parts += ["prompt positions too"] if ask.attended else []
    parts += [f"hidden states of block {layer}" for layer in ask.hidden_layers]
    return " + ".join(parts)


def default(field: Field) -> str:
    if field.default_factory is not MISSING:
        return repr(field.default_factory())
    if field.default is MISSING:
        return "required"
    value = field.default
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value.value if isinstance(value, Role) else str(value)


def paper(kind: type) -> str:
    """First link of the class's docstring or the module's; a subclass without one has its parent's."""
    for ancestor in kind.__mro__[:-1]:
        module = inspect.getdoc(sys.modules[ancestor.__module__]) or ""
        found = re.search(r"https?://[^\s,;)`]+", f"{module} {ancestor.__doc__ or ''}")
        if found:
            return found.group().rstrip(".")
    return ""


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {label:<8}", subsequent_indent=" " * 10)
