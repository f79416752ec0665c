"""DeepSpeed ZeRO under Lightning, on CPUs too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lit_unlearn.engine.head import Head
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.memory.presets import LIVE
from lit_unlearn.models.streamed.skeleton import give_weights, is_skeleton
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.strategies.whole import Sharded, own_weights
from lit_unlearn.strategies.zero.files import ZeroFiles
from lit_unlearn.strategies.zero.precision import ZeroPrecision


class ZeroStrategy(Sharded, ZeroFiles):
    """Stages 1, 2 and 3. Lightning's own lets no CPU in."""

    _indexed = False

    def __init__(self, stage: int, config: StrategyConfig, precision: str, backend: str, timeout: timedelta) -> None:
        self.gathering = config.gathering
        super().__init__(
            stage=stage,
            offload_optimizer=config.offload != "none",
            offload_parameters=config.offload == "parameters",
            precision_plugin=ZeroPrecision(precision, backend),  # type: ignore[arg-type]
            exclude_frozen_parameters=True,
            process_group_backend=backend,
            timeout=timeout,
            logging_batch_size_per_gpu=1,  # rows differ in number; the mean over them is ours
            loss_scale=1.0,
            overlap_comm=False,
            sub_group_size=LIVE,  # the step copies the gradients of one group; Lightning would have one group of all
        )
        assert isinstance(self.config, dict)
        self.config["zero_optimization"]["stage3_param_persistence_threshold"] = config.persistent_below
        if stage > 1:  # micro-batches add up in float32; stage 1 takes another optimizer for it, whose steps are others
            self.config["data_types"] = {"grad_accum_dtype": "fp32"}
        self.config["zero_force_ds_cpu_optimizer"] = False  # torch's own needs no compiler

    @property
    def root_device(self) -> torch.device:
        device = super().root_device
        return torch.device("cpu", self.local_rank) if self._indexed and device.type == "cpu" else device

    def setup_environment(self) -> None:
        if self._on_cpu:
            DDPStrategy.setup_environment(self)  # Lightning's own refuses CPUs
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        if not self._on_cpu:
            super().setup_distributed()
            return
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled, for minutes
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def init_deepspeed(self) -> None:
        from deepspeed.runtime.zero import register_external_parameter

        self._indexed = True  # DeepSpeed wants a number
        try:
            super().init_deepspeed()
        finally:
            self._indexed = False
        if self.zero_stage_3:
            root = self.lightning_module
            assert root is not None
            for engine in [module for module in root.modules() if isinstance(module, ScoringEngine)]:
                self.guard(engine)
                for weight in Head.of(engine.model).shell.parameters():
                    register_external_parameter(root, weight)  # whole for as long as a step's forward takes
        self.take_over_files()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Models come whole and are cut by ``setup``: Lightning's context breaks their positions' frequencies."""
        yield

    @property
    def is_cut(self) -> bool:
        return self.zero_stage_3 and self.model is not self.lightning_module

    def cut(self, engine: ScoringEngine) -> None:
        """Weights that are there are left to ``setup``, which cuts one after the other."""
        if not self.zero_stage_3 or not is_skeleton(engine):
            return
        from deepspeed.runtime.zero import Init

        self._init_config_if_needed()
        assert isinstance(self.config, dict)
        self.config.setdefault("train_micro_batch_size_per_gpu", 1)  # as Lightning will
        cutter = Init(remote_device=self.remote_device, config_dict_or_path=self.config)
        low = self.precision_plugin.precision == "bf16-mixed"  # then DeepSpeed holds bf16

        def pieces(weight: nn.Parameter) -> nn.Parameter:
            dtype = torch.bfloat16 if low else weight.dtype
            data = torch.empty(weight.shape, dtype=dtype, device=self.root_device)
            made = nn.Parameter(data, weight.requires_grad)
            cutter._convert_to_deepspeed_param(made)
            made.partition()  # type: ignore[attr-defined]
            made.ds_tensor.zero_()  # type: ignore[attr-defined]  # what fills it up is in every norm
            return made

        there = [weight for weight in engine.parameters() if not weight.is_meta]
        give_weights(engine, pieces)
        for weight in there:  # fresh adapters
            weight.data = weight.data.bfloat16() if low else weight.data
        cutter._convert_to_zero_parameters(there)

    def begin(self, weight: nn.Parameter) -> int:
        return self.global_rank * weight.ds_tensor.ds_numel  # type: ignore[attr-defined]

    @contextmanager
    def gather(self, units: Sequence[nn.Module]) -> Iterator[None]:
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([weight for unit in units for weight in own_weights(unit)]):
            yield

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        offload = self._engine.optimizer.parameter_offload
        for weight in offload.module.parameters():
            weight.ds_active_sub_modules.clear()
        for hook in offload.forward_hooks + offload.backward_hooks:
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload._register_deepspeed_module(offload.module)

    def open_root(self, model: nn.Module) -> AbstractContextManager[None]:
        """``init_deepspeed`` has tied it to the step."""
        return nullcontext()

    def accumulate(self, loss: Tensor) -> None:
        engine = self._engine
        engine.set_gradient_accumulation_boundary(is_boundary=False)
        engine.backward(loss)
        engine.optimizer.clear_backward_seen_flag()  # else stage 3 lets the next gradient overwrite this one
        engine.set_gradient_accumulation_boundary(is_boundary=True)

    def exact(self, weight: nn.Parameter) -> Tensor:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        weight.data = weight.data.to(self.root_device)  # the fit's end put it on the CPU, where NCCL cannot meet
        if weight.requires_grad:
            found = safe_get_full_fp32_param(weight)
            if found is not None:
                return found.view(getattr(weight, "ds_shape", weight.shape))
        with GatheredParameters([weight], enabled=self.zero_stage_3):
            return weight.detach().clone()

    def assign(self, weight: nn.Parameter, value: Tensor) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        weight.data, value = weight.data.to(self.root_device), value.to(self.root_device)
        with GatheredParameters([weight], modifier_rank=0, enabled=self.zero_stage_3):
            weight.data.copy_(value)
        if not self.zero_stage_3:
            safe_set_full_fp32_param(weight, value.float())
        elif weight.requires_grad:
            size = weight.ds_tensor.numel()  # type: ignore[attr-defined]  # of a piece; the last is filled up
            filled = nn.functional.pad(value.float().flatten(), (0, size * self.world_size - value.numel()))
            safe_set_local_fp32_param(weight, filled.narrow(0, size * self.global_rank, size))

    @property
    def grad_norm(self) -> float:
        """Of the last step, before clipping; infinite where DeepSpeed has left the step out for it."""
        norm = self._engine.get_global_grad_norm()
        return float("inf") if norm == -1 or not self._engine.was_step_applied() else norm or 0.0

    @property
    def _engine(self) -> Any:
        return self.deepspeed_engine

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)
