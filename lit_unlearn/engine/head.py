"""The vocabulary head: float32 logits that live while one slice of rows is scored, and the gradient they leave.

n positions of a slice, V vocabulary, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from lit_unlearn.engine.body import body_of

FLOAT32_PRODUCTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
"""Whether this torch multiplies bf16 matrices into a float32 result on CUDA."""


class Head:
    """What a model does between its body and its logits, for one pass over its positions.

    It is the model's own forward around a body that answers with hidden states known already. So whatever stands
    before, in or after the output matrix (a transform, a bias, a scale, a soft cap) is followed without being known;
    only the product with that matrix is ours. Logits rounded to bf16 would put about 0.1 nats of noise on the log-prob
    of a 40-token answer, so they are float32 under autocast too: out of the low-precision product where the hardware
    can, of a float32 product elsewhere. Gradients of the weights stay here, apart from the model's.
    """

    def __init__(self, shell: PreTrainedModel, body: str, output: str | None, learn: bool = False) -> None:
        """``shell``: a model whose child ``body`` is a stand-in. ``learn``: keep the gradients of trainable weights.

        ``output``: the name of its output matrix's module, where that is a plain product.
        """
        self.shell, self.names, self.learn = shell, (body, output), learn
        self._open(None)

    @classmethod
    def of(cls, model: PreTrainedModel, learn: bool = False) -> Head:
        (name, body), output = body_of(model), model.get_output_embeddings()
        shell = copy.copy(model)
        shell._modules = {**model._modules, name: _Body(body)}
        plain = (name for name, module in shell.named_modules() if module is output and type(module) is nn.Linear)
        return cls(shell, name, next(plain, None), learn)

    def again(self) -> Head:
        """For another pass: the same weights, gradients of its own."""
        other = copy.copy(self)
        other._open(None if self.product is None else self.product.low)
        return other

    def frozen(self) -> Head:
        """A head that stays as it is while the model's moves; its own copy, unless the model's cannot move."""
        movable = any(weight.requires_grad for weight in self.shell.parameters())
        return Head(copy.deepcopy(self.shell).requires_grad_(False) if movable else self.shell, *self.names)

    def to(self, device: torch.device) -> Head:
        """There, in the precision that is in force now."""
        return Head(self.shell.to(device), *self.names)  # type: ignore[arg-type]

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, D] -> [n, V] float32, a tensor of its own."""
        assert isinstance(self.body, _Body)
        with torch.autocast(hidden.device.type, enabled=False):
            self.body.hidden = self.rounded(hidden)[None]
            try:
                ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
                return type(self.shell).forward(self.working, input_ids=ids).logits[0].float()  # type: ignore[attr-defined]
            finally:
                self.body.hidden = None  # or the graph would outlive the step

    def rounded(self, hidden: Tensor) -> Tensor:
        """Hidden states as they are read."""
        return hidden if self.dtype is None else hidden.to(self.dtype)

    def gradients(self) -> dict[str, Tensor]:
        """Of the weights, by name, in their dtype; only those that have one."""
        found = {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}
        if self.product is not None and self.product.gradient is not None:
            name = next(name for name, weight in self.weights.items() if weight is self.product.weight)
            found[name] = self.product.gradient.to(self.product.weight.dtype)
        return found

    def _open(self, low: Tensor | None) -> None:
        """Put leaves in the place of the weights, and our product in that of the output matrix's."""
        self.weights = {
            name: weight.detach().requires_grad_(self.learn and weight.requires_grad)
            for name, weight in self.shell.named_parameters()
        }
        body, output = self.names
        leaves = {id(weight): self.weights[name] for name, weight in self.shell.named_parameters()}
        others, put = list(self.weights.values()), {}
        self.product: _Output | None = None
        if output is not None:
            module = self.shell.get_submodule(output)
            own = [leaves[id(weight)] for weight in module.parameters()]  # the matrix, and a bias where it has one
            self.product = put[id(module)] = _Output(own[0], own[1] if own[1:] else None, low)
            others = [weight for weight in others if all(weight is not one for one in own)]
        self.working = _with_leaves(self.shell, leaves, put)
        self.body = self.working._modules[body]
        self.dtype = others[0].dtype if others else None if self.product is None else self.product.low.dtype


class _Body(nn.Module):
    """Answers with hidden states known already; of the body it stands for it knows the plain numbers."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.hidden: Tensor | None = None
        numbers = {name: value for name, value in vars(body).items() if isinstance(value, bool | int | float)}
        self.__dict__.update({name: value for name, value in numbers.items() if name not in self.__dict__})

    @property
    def decoder(self) -> _Body:
        """Some wrap the decoder in a body that is not called."""
        return self

    def forward(self, *args, **kwargs) -> _Known:
        return _Known(last_hidden_state=self.hidden)  # type: ignore[arg-type]


class _Known(BaseModelOutputWithPast):
    """Only the last hidden state; of all else that some kind of body says, None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Output(nn.Module):
    """The output matrix of one head and the gradient it gathers, in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, low: Tensor | None) -> None:
        """``low``: the matrix in the product's precision, where it is known already."""
        super().__init__()
        self.weight, self.bias = weight, bias
        self.low = weight.detach().to(_product_dtype(weight)) if low is None else low  # [V, D]
        self.gradient: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        product = _Product.apply(hidden.flatten(0, -2), self.weight, self)
        assert isinstance(product, Tensor)
        logits = product if self.bias is None else product + self.bias
        return logits.unflatten(0, hidden.shape[:-1])


class _Product(Function):
    """``hidden @ weight.T``; its backward adds the weight's gradient to the output's, in float32.

    The weight is an argument only so that a head which learns alone is noticed.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, _: Tensor, output: _Output) -> Tensor:
        low = hidden.to(output.low.dtype)
        ctx.output, ctx.low, ctx.dtype = output, low, hidden.dtype
        return _float32_product(low, output.low.T)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        output, low = ctx.output, ctx.low
        gradient = gradient.to(low.dtype)  # [n, V]
        if output.weight.requires_grad:
            if output.gradient is None:
                output.gradient = _float32_product(gradient.T, low)
            elif low.dtype == torch.float32:
                output.gradient.addmm_(gradient.T, low)
            else:
                output.gradient += _float32_product(gradient.T, low)
        own = _float32_product(gradient, output.low).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return own, None, None


def _with_leaves(module: nn.Module, leaves: Mapping[int, Tensor], put: Mapping[int, nn.Module]) -> Any:
    """A module that shares everything with ``module`` but its weights; ``put``: modules by the one they stand for."""
    if id(module) in put:
        return put[id(module)]
    twin = copy.copy(module)
    twin._parameters = {name: None if w is None else leaves[id(w)] for name, w in module._parameters.items()}  # type: ignore[assignment]
    twin._modules = {n: None if m is None else _with_leaves(m, leaves, put) for n, m in module._modules.items()}
    return twin


def _product_dtype(weight: Tensor) -> torch.dtype:
    """bf16 where the run computes in it and the result can be float32 all the same."""
    autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
    low = weight.is_cuda and FLOAT32_PRODUCTS and (autocast or weight.dtype == torch.bfloat16)
    return torch.bfloat16 if low else torch.float32


def _float32_product(left: Tensor, right: Tensor) -> Tensor:
    return left @ right if left.dtype == torch.float32 else torch.mm(left, right, out_dtype=torch.float32)
