"""What DeepSpeed computes in, under Lightning."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.plugins.precision import DeepSpeedPrecision


class ZeroPrecision(DeepSpeedPrecision):
    """Leaves a batch as it is, for log-probs of the reference would be rounded to bf16. Models are read under autocast,
    as by other strategies, since some are read before DeepSpeed has cast them."""

    def __init__(self, precision: Any, backend: str) -> None:
        super().__init__(precision)
        self.device_type = "cuda" if backend == "nccl" else "cpu"

    def convert_input(self, data: Any) -> Any:
        return data

    def forward_context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def train_step_context(self) -> AbstractContextManager[Any]:
        return nullcontext()  # the weights are bf16 then
