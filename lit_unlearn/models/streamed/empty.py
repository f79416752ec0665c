"""A model that is left in its files until it is cut, where that gives the weights which the library would load."""

from __future__ import annotations

import logging

from transformers import PretrainedConfig, PreTrainedModel

from lit_unlearn.engine.trial import can_pack, follow
from lit_unlearn.models.blocks import equip
from lit_unlearn.models.files import refuse_unfit
from lit_unlearn.models.settings import ModelConfig
from lit_unlearn.models.streamed.skeleton import is_skeleton, skeleton, small_twin
from lit_unlearn.models.streamed.source import places

log = logging.getLogger(__name__)


def empty_model(path: str, found: PretrainedConfig, config: ModelConfig, attention: str) -> PreTrainedModel | None:
    """The skeleton, all of whose weights are in the files; None, and a line that says why, where it must be loaded.

    Raises:
        UserError: the files lack weights, or have others.
    """
    model, twin = skeleton(path, found, attention), None
    reason = "its class, or its quantized weights, are read in a way of their own"
    if model is not None:
        at, reason = places(model)
        if reason is None:
            shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
            missing = shapes.keys() - at.keys()
            other = [name for name, shape in shapes.items() if name in at and at[name].shape != shape]
            refuse_unfit(path, missing, other)
            twin, reason = _twin(model, config)
    if model is None or twin is None:
        log.warning("model %s: every process loads all of it, not piece by piece: %s", path, reason)
        return None
    follow(model, twin)
    equip(model, config)
    return model


def stand_in(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """What can be run in the place of a model without its weights; any other model itself."""
    if not is_skeleton(model):
        return model
    twin, reason = _twin(model, config)
    assert twin is not None, reason  # it was made once before
    return twin


def _twin(model: PreTrainedModel, config: ModelConfig) -> tuple[PreTrainedModel | None, str | None]:
    try:
        twin = small_twin(model)
        can_pack(twin)
    except Exception as error:  # of two hundred classes some have widths that cannot be changed alone
        return None, f"no small model of its kind can be tried ({next(iter(str(error).splitlines()), '')})"
    equip(twin, config)
    return twin, None
