"""Whether the engine says of a few tokens what the model itself says: tried, not known from names of settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_unlearn.engine.attention import NAME, take_part
from lit_unlearn.engine.body import evaluating, run_body
from lit_unlearn.engine.head import Head
from lit_unlearn.engine.packing import Packed, packed, padded
from lit_unlearn.errors import UserError

TOLERANCE = 3e-4
"""Largest norm of a position's error, relative to that of its log-probs around their mean.

A float32 operation rounds by 6e-8. At the end of a random Llama of width 576 that leaves, against float64, 7e-7 after 4
layers and 1e-6 after 30; 2e-5 after 30 and 1e-4 after 80 with weights 5 and 10 times as large, which no trained model
has. What attends, scales or caps wrongly is wrong by more than 1e-3."""
LENGTHS = (24, 19, 13, 24)
"""Tokens of the rows tried; all but the last begin alike."""
TRIES = 2
"""Other tokens before a model is given up: where experts are chosen, a near tie may fall the other way by rounding."""
_refused: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()
"""Models that cannot be packed and are right when padded, with the attention of that trial."""


def can_pack(model: PreTrainedModel) -> bool:
    """Whether packed rows are scored rightly, tried once a model, which then takes part in patterns; else padded ones.

    Raises:
        UserError: neither gives the model's own log-probs.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == NAME:
        return True
    before = config._attn_implementation or "eager"
    if _refused.get(model) == before:
        return False
    with exactly(model):
        padded_error = _tried(model, False)
        if padded_error is None and take_part(model):
            if _tried(model, True) is None:
                return True
            model.set_attn_implementation(before)
    if padded_error is not None:
        raise UserError(f"{type(model).__name__} cannot be scored rightly: {padded_error}; choose another model")
    _refused[model] = before
    return False


def follow(model: PreTrainedModel, tried: PreTrainedModel) -> None:
    """Run ``model``, whose weights are not there, as ``can_pack`` found right for one of its kind."""
    if not can_pack(tried) or not take_part(model):
        _refused[model] = model.config.get_text_config()._attn_implementation or "eager"


def _tried(model: PreTrainedModel, pack: bool) -> str | None:
    """What is wrong, in words; None where nothing is."""
    fault: str | None = None
    for attempt in range(TRIES):
        rows = _rows(model, attempt)
        try:
            known = _own(model, rows)
        except Exception as error:  # a library of two hundred models; whatever it raises, this one cannot be run
            return f"its own forward fails on plain tokens ({type(error).__name__}: {_first_line(error)})"
        if not known.isfinite().all():
            return "its logits are NaN or infinite on plain tokens, so its weights are broken"
        if not (known - known.mean(-1, keepdim=True)).any():
            return "it finds all tokens equally likely, so its weights are all 0"
        try:
            fault = _compare(model, rows, known, pack)
        except Exception as error:  # as above; the engine asks for no more than a body and a head
            return f"its body and head cannot be run apart ({type(error).__name__}: {_first_line(error)})"
        if fault is None:
            return None
    return fault


def _compare(model: PreTrainedModel, rows: Tensor, known: Tensor, pack: bool) -> str | None:
    whole = torch.ones_like(rows)
    head = Head.of(model)
    hidden = _hidden(model, padded(rows, whole))
    if differs(known, head(hidden[padded(rows, whole).index.flatten()]).view_as(known)):
        return "its logits are not a function of its body's last hidden state, position by position"
    mask = (torch.arange(rows.shape[1], device=rows.device) < torch.tensor(LENGTHS, device=rows.device)[:, None]).long()
    rows = rows * mask  # 0 is what rows are padded with
    laid = packed(rows, mask) if pack else padded(rows, mask)
    found = head(_hidden(model, laid)[laid.index[mask.bool()]])
    if differs(known[mask.bool()], found):
        return "what it says of a token depends on later tokens or on other rows"
    return None


def differs(known: Tensor, found: Tensor) -> bool:
    """[..., V] logits of the same positions by two ways, in float32: more than rounding."""
    left, right = (logits.float().flatten(0, -2).log_softmax(-1) for logits in (known, found))
    spread = (left - left.mean(-1, keepdim=True)).norm(dim=-1)
    return not bool(((left - right).norm(dim=-1) <= TOLERANCE * spread).all())  # NaN differs


def _own(model: PreTrainedModel, rows: Tensor) -> Tensor:
    return model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits  # [R, T, V]


def _hidden(model: PreTrainedModel, rows: Packed) -> Tensor:
    hidden, _ = run_body(model, rows.inputs, (), True)
    assert hidden is not None
    return hidden


def _rows(model: PreTrainedModel, attempt: int) -> Tensor:
    """[R, T]; the lowest ids, of padding and special tokens, do not occur."""
    draw, vocabulary = Random(attempt), model.config.get_text_config().vocab_size
    ids = lambda count: [draw.randrange(min(8, vocabulary - 1), min(vocabulary, 1000)) for _ in range(count)]  # noqa: E731
    begin = ids(17)
    rows = [begin + ids(LENGTHS[0] - len(begin)) for _ in LENGTHS[:-1]] + [ids(LENGTHS[0])]
    return torch.tensor(rows, device=model.device)


@contextmanager
def exactly(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients, float32 throughout: low weights are read as they are, so that only mistakes show.

    They are there twice for so long. Products and convolutions that a GPU would shorten to TF32 are not.
    """
    low = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in (torch.bfloat16, torch.float16)]
    kept, precision = [tensor.data for tensor in low], torch.get_float32_matmul_precision()
    plain = (torch.autocast(model.device.type, enabled=False), torch.backends.cudnn.flags(enabled=False))
    with torch.no_grad(), evaluating(model), plain[0], plain[1]:
        torch.set_float32_matmul_precision("highest")
        try:
            for tensor in low:
                tensor.data = tensor.data.float()
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            for tensor, data in zip(low, kept, strict=True):
                tensor.data = data


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
