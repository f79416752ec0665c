"""FSDP2 under Lightning: blocks are cut one by one, then the rest; a checkpoint is one file, with whole weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from math import prod

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lit_unlearn.engine.body import decoder_blocks
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.models.streamed.skeleton import give_weights
from lit_unlearn.strategies.whole import Sharded


class Fsdp2Strategy(Sharded, ModelParallelStrategy):
    """Every rank is one of one mesh."""

    def __init__(self, world: int, backend: str, timeout: timedelta) -> None:
        super().__init__(world, 1, save_distributed_checkpoint=False, process_group_backend=backend, timeout=timeout)

    def cut(self, engine: ScoringEngine) -> None:
        """The blocks one by one, then the engine, whose forward is the one that is called.

        Under low precision bf16 is gathered and computed in, and gradients are reduced in float32.
        """
        assert self.device_mesh is not None
        mesh, low = self.device_mesh["data_parallel"], self.precision_plugin.precision != "32-true"
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if low else MixedPrecisionPolicy()
        for block in decoder_blocks(engine.model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(engine, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        make = partial(torch.empty_like, device=self.root_device)
        give_weights(engine, lambda weight: nn.Parameter(make(weight), weight.requires_grad))
        engine._get_fsdp_state()._lazy_init()  # type: ignore[operator]  # else the first block that is run is the root

    def begin(self, weight: nn.Parameter) -> int:
        assert isinstance(weight, DTensor)
        mesh, row = weight.device_mesh, prod(weight.shape[1:])
        return min(mesh.get_local_rank() * -(-len(weight) // mesh.size()), len(weight)) * row

    @contextmanager
    def whole(self, models: Sequence[nn.Module]) -> Iterator[None]:
        units = [unit for model in models for unit in model.modules() if isinstance(unit, FSDPModule)]
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                unit.reshard()
                unit.set_reshard_after_forward(all(unit is not model for model in models), recurse=False)

    @contextmanager
    def open_root(self, model: nn.Module) -> Iterator[None]:
        assert isinstance(model, FSDPModule)
        model.unshard()
        try:
            yield
        finally:
            model.reshard()

    def exact(self, weight: nn.Parameter) -> Tensor:
        return weight.full_tensor() if isinstance(weight, DTensor) else weight
