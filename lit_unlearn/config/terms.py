"""The terms of the loss, from the configuration or from a mapping as YAML writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_unlearn.config.build import build
from lit_unlearn.config.schema import Config, TermConfig
from lit_unlearn.errors import UserError
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.types import Term, Terms


def build_terms(config: Config) -> Terms:
    """The objects behind ``config.terms``."""
    return _terms({name: term for name, term in config.terms.items() if term is not None})


def terms_from(written: Mapping[str, Mapping[str, Any] | None]) -> Terms:
    """The objects behind a ``terms`` mapping as YAML writes it; a null leaves a term out."""
    kinds, present = {"term": TermConfig}, {name: node for name, node in written.items() if node is not None}
    if not present:
        raise UserError("terms is empty: name at least one, e.g. {'forget': {'objective': {'name': 'npo'}}}")
    return _terms({name: build({"name": "term", **node}, kinds, f"terms.{name}") for name, node in present.items()})


def _terms(nodes: Mapping[str, TermConfig]) -> Terms:
    return {
        name: Term(node.weight, build(node.objective, OBJECTIVES, f"terms.{name}.objective"))
        for name, node in nodes.items()
    }
