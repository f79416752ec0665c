"""Linear layers whose frozen weights stand in four bits, by bitsandbytes (QLoRA)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers import PreTrainedModel

from lit_unlearn.engine.body import decoder_blocks
from lit_unlearn.errors import UserError
from lit_unlearn.models.settings import LoraConfig

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale of one byte, and scales that share one of four: 4 + 8 / 64 + 32 / (64 * 256) bits."""
_OWN = ("weight", "absmax", "nested_absmax", "offset")
"""Parameters of a layer that are no weights of a plain model."""


class NF4Linear(nn.Linear):
    """``x W.T + b`` with W in 4-bit NormalFloat, its scales quantized too (https://arxiv.org/abs/2305.14314).

    W is made whole for one product at a time, in the dtype the run computes in, and again in the backward, where x gets
    its gradient. All that it holds are frozen parameters, which DDP sends once, not buffers, which it sends each step.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """``layer``: an even number of floating weights a row, where they lie; its bias is shared."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        codes, state = _functional().quantize_4bit(
            layer.weight.detach().float(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.weight = _frozen(codes.view(self.out_features, -1))  # uint8 [out, in / 2]
        self.absmax = _frozen(state.absmax)  # uint8 [weights / BLOCK]
        self.nested_absmax = _frozen(_bytes(state.state2.absmax))  # [4 * weights / BLOCK / NESTED_BLOCK]
        self.offset = _frozen(_bytes(state.offset))  # [4]
        self.register_buffer("code", state.code, persistent=False)  # [16]
        self.register_buffer("nested_code", state.state2.code, persistent=False)  # [256]
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        return _Product.apply(input, self, dtype)  # type: ignore[return-value]

    def whole(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in] what the four bits stand for, or the plain weights it was given."""
        if self.weight.is_floating_point():
            return self.weight.to(dtype)
        kind = _functional().QuantState
        absmax, offset = (held.view(torch.float32) for held in (self.nested_absmax, self.offset))
        scales = kind(absmax, code=self.nested_code, blocksize=NESTED_BLOCK, dtype=torch.float32)
        shape = torch.Size((self.out_features, self.in_features))
        state = kind(self.absmax, shape, self.code, BLOCK, "nf4", dtype, offset[0], scales)
        return _functional().dequantize_4bit(self.weight.view(-1, 1), state)

    def hold(self, weight: Tensor) -> None:
        """Plain weights from now on."""
        self.weight = _frozen(weight)


class _Product(Function):
    """Keeps the layer for the backward, not its weights."""

    @staticmethod
    def forward(ctx, input: Tensor, layer: NF4Linear, dtype: torch.dtype) -> Tensor:
        ctx.layer, ctx.dtype, ctx.input_dtype = layer, dtype, input.dtype
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return nn.functional.linear(input.to(dtype), layer.whole(dtype), bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return (gradient.to(ctx.dtype) @ ctx.layer.whole(ctx.dtype)).to(ctx.input_dtype), None, None


def check_nf4_installed() -> None:
    if find_spec("bitsandbytes") is None:
        raise UserError("model.lora.base=nf4 needs bitsandbytes, of the extra lora: pip install -e '.[lora]'")


@torch.no_grad()
def quantize_base(model: PreTrainedModel, lora: LoraConfig | None) -> None:
    """Where ``lora`` asks for it, the linear layers of the blocks one by one; those that are quantized already stay.

    Raises:
        UserError: the blocks have no linear layers of the usual kind.
    """
    if lora is None or lora.base == "full":
        return
    found = 0
    for block in decoder_blocks(model):
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                found += isinstance(child, NF4Linear)
                if type(child) is nn.Linear and child.in_features % 2 == 0:
                    setattr(module, name, NF4Linear(child))  # the only other holder of the weights lets them go
                    found += 1
    if not found:
        raise UserError(
            f"model.lora.base=nf4: the blocks of {type(model).__name__} have no torch.nn.Linear; set it to full"
        )


def nf4_layers(model: nn.Module) -> Iterator[tuple[str, NF4Linear]]:
    """By name."""
    for name, module in model.named_modules():
        if isinstance(module, NF4Linear):
            yield name, module


def quantized_names(model: nn.Module) -> set[str]:
    """Of the parameters that hold quantized weights."""
    return {f"{name}.{own}" for name, _ in nf4_layers(model) for own in _OWN}


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _bytes(numbers: Tensor) -> Tensor:
    """Of float32, so that nobody who casts the weights of a model rounds the scales."""
    return numbers.reshape(-1).view(torch.uint8)


def _functional() -> Any:
    return import_module("bitsandbytes.functional")
