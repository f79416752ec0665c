"""AdamW four times: plain, with 8-bit moments, with moments that page to the host, and stepping inside the backward."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_unlearn.errors import UserError
from lit_unlearn.training.settings import OptimizerName

_PACKAGES = {"adamw_8bit": "torchao.optim", "adamw_paged": "bitsandbytes"}


class AdamWInBackward(torch.optim.AdamW):
    """AdamW that moves each weight as soon as its gradient is whole, inside the backward, and frees the gradient.

    The gradients never live all at once, so nothing can look at them together: no clipping, no accumulation, no
    averaging over ranks behind the backward. State, schedule and checkpoints are AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, **settings)
        for group in self.param_groups:
            for weight in group["params"]:
                weight.register_post_accumulate_grad_hook(self._move)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """The closure holds the backward, which is where the weights have moved when it returns."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def _move(self, weight: Tensor) -> None:
        super().step()  # skips the weights without a gradient: all but this one
        weight.grad = None


def build_optimizer(name: OptimizerName, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    """``groups`` and ``settings`` are those of ``torch.optim.AdamW``."""
    if name == "adamw_8bit":
        return _adamw_8bit(groups, **settings)
    if name == "adamw_paged":
        return import_module("bitsandbytes").optim.PagedAdamW32bit(groups, **settings)
    kind = torch.optim.AdamW if name == "adamw" else AdamWInBackward
    return kind(groups, **settings, fused=True)


def check_installed(name: OptimizerName, accelerator: str) -> None:
    """Raises UserError where the optimizer's package, or the device it needs, is not there."""
    if name == "adamw_paged" and (accelerator == "cpu" or not torch.cuda.is_available()):
        raise UserError("optim.name=adamw_paged pages between a GPU and its host, and there is no GPU; use adamw")
    if name not in _PACKAGES:
        return
    try:
        import_module(_PACKAGES[name])
    except ImportError as error:
        raise UserError(f"optim.name={name} needs the extra lean: pip install -e '.[lean]' ({error})") from error


@torch.no_grad()
def hold_weights(model: PreTrainedModel, name: OptimizerName) -> None:
    """Give the weights the precision the optimizer keeps them in: for ``adamw_8bit`` bf16, else they stay float32.

    Stochastic rounding stands for the float32 master. Embedding and vocabulary head stay float32: so do then the sums
    that run through the blocks and the logits, and log-probs are as good as those of float32 weights under autocast.
    """
    if name != "adamw_8bit":
        return
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    kept = {id(weight) for end in ends if isinstance(end, nn.Module) for weight in end.parameters()}
    for weight in model.parameters():
        if id(weight) not in kept and weight.is_floating_point():  # else the codes of a quantized base
            weight.data = weight.data.to(torch.bfloat16)  # not model.to: RoPE's float32 buffers must stay


def _adamw_8bit(groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    optimizer = import_module("torchao.optim").AdamW8bit(groups, **settings, bf16_stochastic_round=True)
    optimizer.register_state_dict_post_hook(_with_states(_flat))
    optimizer.register_load_state_dict_pre_hook(_with_states(_quantized))
    return optimizer


def _with_states(change: Callable[[Any], Any]) -> Callable[[torch.optim.Optimizer, dict[str, Any]], dict[str, Any]]:
    def hook(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        states = {key: {name: change(value) for name, value in state.items()} for key, state in saved["state"].items()}
        return {**saved, "state": states}

    return hook


def _flat(value: Any) -> Any:
    """A quantized moment as plain tensors; Lightning's way of reading checkpoints cannot rebuild its class."""
    if not hasattr(value, "__tensor_flatten__"):
        return value
    names, (signed, dtype) = value.__tensor_flatten__()
    return {"tensors": {name: getattr(value, name) for name in names}, "signed": signed, "dtype": dtype}


def _quantized(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kind = import_module("torchao.optim.subclass_8bit").OptimState8bit
    return kind(**value["tensors"], signed=value["signed"], dtype=value["dtype"])
