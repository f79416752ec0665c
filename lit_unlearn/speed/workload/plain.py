"""The plain recipe: the same losses as the field's public code computes them, on the same Hugging Face model.

What is done, after OpenUnlearning (https://github.com/locuslab/open-unlearning, d3d7cf9), in our own words:

- each role is a block of its own, padded right to its longest row, with a forward of its own through the whole model;
- the model is called with ``labels``, so it returns the logits of every position, prompt and padding included, and
  computes its own mean cross-entropy, whether or not that is used;
- NPO, SimNPO, WGA and TNPO read a second cross-entropy, without reduction, of the shifted and transposed logits;
- NPO, TNPO, KL and RMU's retain term run a resident copy of the start, without gradient, in each step;
- RMU runs policy and start to full depth, vocabulary logits and cross-entropy included, to read one hidden state.

Where that code's value is not the paper's (RMU's mean over pairs of rows, KL over padding), the paper's is computed, so
that both recipes have one value. It is milder than what it stands for in two places: BS-T's published code forms an
int64 one-hot of the vocabulary, here the soft target is written by index; and KL's first, unused forward is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lit_unlearn.objectives import BST, KL, NLL, NPO, RMU, TNPO, WGA, GradAscent, HiddenMatch, SimNPO
from lit_unlearn.types import IGNORE_INDEX, Role, Rows, Terms


def loss(policy: PreTrainedModel, start: PreTrainedModel | None, batch: Mapping[Role, Rows], terms: Terms) -> Tensor:
    """The weighted sum of the terms, differentiable; ``start`` only where a term reads the reference."""
    total = 0.0
    for term in terms.values():
        rows = batch[term.objective.role]  # type: ignore[attr-defined]
        total = total + term.weight * _TERMS[type(term.objective)](policy, start, rows, term.objective)
    assert isinstance(total, Tensor)
    return total


def forward(model: PreTrainedModel, rows: Rows, **options):
    """All logits of a padded block, and the model's own loss."""
    return model(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        labels=rows.labels,
        use_cache=False,
        **options,
    )


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, T - 1], 0 where no label follows; logits [B, T, V]."""
    shifted = logits[..., :-1, :].float().contiguous()
    return F.cross_entropy(
        shifted.transpose(-1, -2), labels[..., 1:].contiguous(), ignore_index=IGNORE_INDEX, reduction="none"
    )


def _ascent(policy: PreTrainedModel, start: PreTrainedModel, rows: Rows, objective: GradAscent) -> Tensor:
    return -forward(policy, rows).loss


def _nll(policy: PreTrainedModel, start: PreTrainedModel, rows: Rows, objective: NLL) -> Tensor:
    return forward(policy, rows).loss


def _npo(policy: PreTrainedModel, start: PreTrainedModel, rows: Rows, objective: NPO) -> Tensor:
    nll = token_nll(forward(policy, rows).logits, rows.labels).sum(-1)  # [B]
    with torch.no_grad():
        start_nll = token_nll(forward(start, rows).logits, rows.labels).sum(-1)  # [B]
    return -F.logsigmoid(objective.beta * (nll - start_nll)).mean() * 2 / objective.beta


def _simnpo(policy: PreTrainedModel, start: PreTrainedModel, rows: Rows, objective: SimNPO) -> Tensor:
    nll = token_nll(forward(policy, rows).logits, rows.labels).sum(-1)  # [B]
    nll = nll / (rows.labels != IGNORE_INDEX).sum(-1)
    return -F.logsigmoid(objective.beta * (nll - objective.delta)).mean() * 2 / objective.beta


def _wga(policy: PreTrainedModel, start: PreTrainedModel, rows: Rows, objective: WGA) -> Tensor:
    nll = token_nll(forward(policy, rows).logits, rows.labels)  # [B, T - 1]
    weight = (-nll).exp().detach() ** objective.beta
    return _token_mean(-weight * nll, rows)


def _tnpo(policy: PreTrainedModel, start: PreTrainedModel, rows: Rows, objective: TNPO) -> Tensor:
    nll = token_nll(forward(policy, rows).logits, rows.labels)  # [B, T - 1]
    with torch.no_grad():
        start_nll = token_nll(forward(start, rows).logits, rows.labels)
    weight = objective.weight(-nll.detach(), -start_nll)
    return _token_mean(-weight * nll, rows)


def _bst(policy: PreTrainedModel, start: PreTrainedModel, rows: Rows, objective: BST) -> Tensor:
    logits = forward(policy, rows).logits[..., :-1, :].float().contiguous()  # [B, T - 1, V]
    labels, mask = rows.labels[..., 1:], rows.labels[..., 1:] != IGNORE_INDEX
    with torch.no_grad():
        belief, ids = logits.softmax(-1).topk(min(objective.k, logits.shape[-1]), dim=-1)
        target = torch.zeros_like(logits)
        target.scatter_(-1, ids, objective.mix * belief / belief.sum(-1, keepdim=True))
        index = labels.clamp(min=0)[..., None]
        target.scatter_add_(-1, index, torch.full_like(index, 1.0 - objective.mix, dtype=target.dtype))
    values = (target * logits.log_softmax(-1)).sum(-1)  # [B, T - 1]
    return ((values * mask).sum(-1) / mask.sum(-1)).mean()


def _kl(policy: PreTrainedModel, start: PreTrainedModel, rows: Rows, objective: KL) -> Tensor:
    log_q = forward(policy, rows).logits.float().log_softmax(-1)  # [B, T, V]
    with torch.no_grad():
        log_p = forward(start, rows).logits.float().log_softmax(-1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)  # [B, T]
    return _token_mean(divergence[:, :-1], rows)


def _rmu(policy: PreTrainedModel, start: PreTrainedModel, rows: Rows, objective: RMU) -> Tensor:
    hidden = _hidden(policy, rows, objective.layer)  # [B, T, D]
    direction = torch.rand(hidden.shape[-1], generator=torch.Generator().manual_seed(objective.seed))
    target = objective.coefficient * (direction / direction.norm()).to(hidden)
    return _row_mean(((hidden - target) ** 2).mean(-1), rows)


def _hidden_match(policy: PreTrainedModel, start: PreTrainedModel, rows: Rows, objective: HiddenMatch) -> Tensor:
    with torch.no_grad():
        target = _hidden(start, rows, objective.layer)
    return _row_mean(((_hidden(policy, rows, objective.layer) - target) ** 2).mean(-1), rows)


def _hidden(model: PreTrainedModel, rows: Rows, layer: int) -> Tensor:
    """[B, T, D] output of a block; number 0 of the list is the embedding."""
    return forward(model, rows, output_hidden_states=True).hidden_states[layer + 1].float()


def _token_mean(values: Tensor, rows: Rows) -> Tensor:
    mask = rows.labels[..., 1:] != IGNORE_INDEX
    return (values * mask).sum() / mask.sum()


def _row_mean(values: Tensor, rows: Rows) -> Tensor:
    """Over each row's labelled tokens themselves, then over rows; values [B, T]."""
    mask = rows.labels != IGNORE_INDEX
    return ((values * mask).sum(-1) / mask.sum(-1)).mean()


_TERMS: dict[type, Callable[..., Tensor]] = {
    GradAscent: _ascent,
    NLL: _nll,
    NPO: _npo,
    SimNPO: _simnpo,
    WGA: _wga,
    TNPO: _tnpo,
    BST: _bst,
    KL: _kl,
    RMU: _rmu,
    HiddenMatch: _hidden_match,
}
"""Only the default reductions of these; the parity gate refuses a cell whose values differ."""
