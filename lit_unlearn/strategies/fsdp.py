"""FSDP2 under Lightning: blocks are cut one by one, then the rest; a checkpoint is one file, with whole weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from math import prod

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_unlearn.engine.body import decoder_blocks
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.models.streamed.skeleton import give_weights
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.strategies.whole import Sharded


class Fsdp2Strategy(Sharded, ModelParallelStrategy):
    """Every rank is one of one mesh."""

    def __init__(self, world: int, config: StrategyConfig, backend: str, timeout: timedelta) -> None:
        self.gathering = config.gathering
        super().__init__(world, 1, save_distributed_checkpoint=False, process_group_backend=backend, timeout=timeout)

    @property
    def is_cut(self) -> bool:
        assert self.lightning_module is not None
        return any(isinstance(module, FSDPModule) for module in self.lightning_module.modules())

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
        self.guard(engine)

    def begin(self, weight: nn.Parameter) -> int:
        assert isinstance(weight, DTensor)
        mesh, row = weight.device_mesh, prod(weight.shape[1:])
        return min(mesh.get_local_rank() * -(-len(weight) // mesh.size()), len(weight)) * row

    @contextmanager
    def gather(self, units: Sequence[nn.Module]) -> Iterator[None]:
        cut = [unit for unit in units if isinstance(unit, FSDPModule)]
        for unit in cut:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in cut:
                unit.reshard()
                unit.set_reshard_after_forward(not isinstance(unit, ScoringEngine), recurse=False)

    def at_rest(self) -> AbstractContextManager[None]:
        return nullcontext()

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

    def assign(self, weight: nn.Parameter, value: Tensor) -> None:
        if not isinstance(weight, DTensor):
            weight.copy_(value)
            return
        own = weight.to_local()
        pieces = distribute_tensor(value.to(own.device), weight.device_mesh, weight.placements, src_data_rank=None)
        own.copy_(pieces.to_local())
