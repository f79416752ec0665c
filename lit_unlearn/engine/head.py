"""The vocabulary head: float32 logits that live while one slice of rows is scored, and the gradient they leave.

n positions of a slice, V vocabulary, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call
from transformers import PreTrainedModel

FLOAT32_PRODUCTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
"""Whether this torch multiplies bf16 matrices into a float32 result on CUDA."""


class Head:
    """A model's head for one pass over its positions; gradients of its weights stay here, apart from the model's.

    Logits rounded to bf16 would put about 0.1 nats of noise on the log-prob of a 40-token answer, so they are float32
    under autocast too: out of the low-precision product where the hardware can, of a float32 product elsewhere.
    """

    def __init__(self, module: nn.Module, cap: float | None = None, learn: bool = False) -> None:
        """``cap``: soft limit of the logits, as in Gemma 2. ``learn``: keep the gradients of trainable weights."""
        self.module, self.cap = module, cap
        self.vocabulary = len(module.weight)  # type: ignore[arg-type]
        self.weights = {
            name: weight.detach().requires_grad_(learn and weight.requires_grad)
            for name, weight in module.named_parameters()
        }
        self.gradient: Tensor | None = None
        self.plain = type(module) is nn.Linear and set(self.weights) == {"weight"}
        if self.plain:
            weight = self.weights["weight"]
            self.weight = weight.detach().to(_product_dtype(weight))  # [V, D]
            self.learns = weight.requires_grad

    @classmethod
    def of(cls, model: PreTrainedModel, learn: bool = False) -> Head:
        module = model.get_output_embeddings()
        assert isinstance(module, nn.Module)
        return cls(module, getattr(model.config.get_text_config(), "final_logit_softcapping", None), learn)

    def again(self) -> Head:
        """For another pass: the same weights, gradients of its own."""
        other = copy.copy(self)
        other.gradient = None
        other.weights = {name: w.detach().requires_grad_(w.requires_grad) for name, w in self.weights.items()}
        return other

    def frozen(self) -> Head:
        """A head that stays as it is while the model's moves; its own copy, unless the model's cannot move."""
        movable = any(weight.requires_grad for weight in self.module.parameters())
        return Head(copy.deepcopy(self.module).requires_grad_(False) if movable else self.module, self.cap)

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, D] -> [n, V] float32, a tensor of its own."""
        with torch.autocast(hidden.device.type, enabled=False):
            if self.plain:
                product = _Product.apply(hidden, self.weights["weight"], self)
                assert isinstance(product, Tensor)
                logits = product
            else:
                weight = next(iter(self.weights.values()))
                logits = functional_call(self.module, self.weights, hidden.to(weight.dtype)).float()
            return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def gradients(self) -> Mapping[str, Tensor]:
        """Of the weights, by name, in their dtype; only those that have one."""
        if self.plain:
            weight = self.weights["weight"]
            return {} if self.gradient is None else {"weight": self.gradient.to(weight.dtype)}
        return {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}


class _Product(Function):
    """``hidden @ weight.T``; its backward adds the weight's gradient to the head's, in float32.

    The weight is an argument only so that a head which learns alone is noticed.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, _: Tensor, head: Head) -> Tensor:
        low = hidden.to(head.weight.dtype)
        ctx.head, ctx.low, ctx.dtype = head, low, hidden.dtype
        return _float32_product(low, head.weight.T)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        head, low = ctx.head, ctx.low
        gradient = gradient.to(low.dtype)  # [n, V]
        if head.learns:
            if head.gradient is None:
                head.gradient = _float32_product(gradient.T, low)
            elif low.dtype == torch.float32:
                head.gradient.addmm_(gradient.T, low)
            else:
                head.gradient += _float32_product(gradient.T, low)
        own = _float32_product(gradient, head.weight).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return own, None, None


def _product_dtype(weight: Tensor) -> torch.dtype:
    """bf16 where the run computes in it and the result can be float32 all the same."""
    autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
    low = weight.is_cuda and FLOAT32_PRODUCTS and (autocast or weight.dtype == torch.bfloat16)
    return torch.bfloat16 if low else torch.float32


def _float32_product(left: Tensor, right: Tensor) -> Tensor:
    return left @ right if left.dtype == torch.float32 else torch.mm(left, right, out_dtype=torch.float32)


class Statistics(Function):
    """What objectives read off the logits, in one buffer: they become probabilities, then their own gradient.

    The logits must belong to nobody else. With z the logits of a position, s(z) their log-sum-exp and pi the softmax:
    ``dl/dz = onehot(y) - pi`` of a log-prob, ``-pi (log pi + H)`` of the entropy H.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, top_k: int, entropy: bool):
        """[n, V], [n] -> [n] log-probs of the labels, [n, K] largest log-probs, [n, K] their ids, [n] entropy or 0."""
        label_logits = logits.gather(-1, labels[:, None]).squeeze(-1)
        top_logits, top_ids = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        peak = logits.amax(-1)  # [n]
        mass = logits.sub_(peak[:, None]).exp_()  # [n, V] exp(z - max)
        total = mass.sum(-1)
        log_total = total.log()
        spread = log_total - torch.xlogy(mass, mass).sum(-1) / total if entropy else torch.zeros_like(total)
        ctx.mass, ctx.total, ctx.spread = mass, total, spread if entropy else None
        ctx.save_for_backward(labels, top_ids)
        ctx.mark_non_differentiable(top_ids)
        logps = label_logits - peak - log_total  # in this order: peak + log_total would round at the size of the peak
        return logps, top_logits - peak[:, None] - log_total[:, None], top_ids, spread

    @staticmethod
    def backward(ctx, of_labels: Tensor, of_top: Tensor, _, of_entropy: Tensor):
        labels, top_ids = ctx.saved_tensors
        mass, total = ctx.mass, ctx.total
        ctx.mass = None  # the buffer serves once
        share = of_labels + of_top.sum(-1)  # [n] everything that is less log_z
        if ctx.spread is None:
            gradient = mass.mul_((-share / total)[:, None])
        else:
            log_pi = mass.log().sub_(total.log()[:, None]).clamp_(min=-200.0)  # a pi of 0 takes part in nothing
            factor = log_pi.add_(ctx.spread[:, None]).mul_(of_entropy[:, None]).add_(share[:, None])
            gradient = mass.mul_(factor).div_(-total[:, None])
        gradient.scatter_add_(-1, labels[:, None], of_labels[:, None])
        return gradient.scatter_add_(-1, top_ids, of_top), None, None, None
