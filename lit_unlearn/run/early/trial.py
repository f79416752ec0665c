"""``data.micro_batch_size=auto``: how many rows fit in one forward, tried before the first step, without a trace."""

from __future__ import annotations

import gc
import logging
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_unlearn.callbacks.settings import BeliefConfig
from lit_unlearn.config.schema import Config
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import pad
from lit_unlearn.errors import UserError, is_out_of_memory
from lit_unlearn.memory.size import GIB, ModelSize
from lit_unlearn.memory.tokens import Tokens
from lit_unlearn.parallel import all_reduce_max, alone
from lit_unlearn.reference.plan import reference_states
from lit_unlearn.run.early.memory import planned, with_beliefs
from lit_unlearn.training.checkpoints import random_states, restore
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.types import Batch, Role

log = logging.getLogger(__name__)
_NOTHING = Tokens(0, 0, 0, 0, 0)
KEY = "train/micro_batch_size"


class MicroBatches(L.Callback):
    """Settles the module's ``micro_batch_size``: the fewest forwards a step whose largest rows fit on every rank.

    A trial is a forward and a backward of one micro-batch of the longest rows without a word to other ranks, so that
    one of them may run out of memory; weights that lie in pieces cannot be tried so. What a step will hold and is not
    there yet (moments, gradients) is stood for by an empty tensor, by the memory plan. Weights, gradients, optimizer
    and random states are left as they are. A resumed run takes the number from its checkpoint.
    """

    def __init__(self, config: Config, size: ModelSize, data: UnlearnData, resident: bool) -> None:
        self.config, self.size, self.data, self.resident = config, size, data, resident
        self.beliefs = config.beliefs or BeliefConfig()
        self.settled: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        if self.settled is None:
            states, buffers = random_states(), [buffer.clone() for buffer in pl_module.buffers()]
            self.settled = self._settle(pl_module)
            for buffer, kept in zip(pl_module.buffers(), buffers, strict=True):
                buffer.copy_(kept)
            restore(states, pl_module.device)
            if trainer.is_global_zero:
                log.info("data.micro_batch_size=auto: %d rows of each role in one forward", self.settled)
        pl_module.micro_batch_size = self.settled
        for logger in trainer.loggers:
            logger.log_metrics({KEY: self.settled}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"micro_batch_size": self.settled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.settled = state_dict["micro_batch_size"]

    def _settle(self, module: UnlearnModule) -> int:
        """Rows of the fewest forwards that fit, by bisection over their number."""
        anchor = self.data.rows.get(Role.forget) or next(iter(self.data.rows.values()))
        most = -(-min(self.data.batch_size, len(anchor)) // module.trainer.world_size)
        if Role.belief in module.needs.policy and self.beliefs.per_step == "all":
            most *= self.beliefs.num_samples
        too_few, enough = 0, 1
        while not self._fits(module, -(-most // enough), enough > 1):
            if enough == most:
                raise UserError(
                    "data.micro_batch_size=auto: not even one row of each role fits; set "
                    "model.gradient_checkpointing=full, optim.name=adamw_8bit or model.lora, or spread the model "
                    "(strategy.name=zero3, strategy.offload)"
                )
            too_few, enough = enough, min(2 * enough, most)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self._fits(module, -(-most // middle), True):
                enough = middle
            else:
                too_few = middle
        return -(-most // enough)

    def _fits(self, module: UnlearnModule, num_rows: int, micro: bool) -> bool:
        """On every rank."""
        batch = {role: rows.to(module.device) for role, rows in self._longest(module, num_rows).items()}
        with module.reading(), alone():
            short = _is_too_much(module, batch, self._to_come(module, micro), micro)
        gc.collect()
        if module.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(module.device)
        return not all_reduce_max(int(short))

    def _longest(self, module: UnlearnModule, num_rows: int) -> Batch:
        """Of each split; together longer than any step's, so that what fits now fits always."""
        length = lambda row: (len(row.prompt) + len(row.answer), len(row.answer))  # noqa: E731
        rows = {role: sorted(split, key=length)[-num_rows:] for role, split in self.data.rows.items()}
        if Role.belief in module.needs.policy:
            rows[Role.belief] = with_beliefs(rows[Role.forget], self.beliefs)[-num_rows:]
        return {role: pad(split) for role, split in rows.items() if role in module.needs.policy}

    def _to_come(self, module: UnlearnModule, micro: bool) -> int:
        """Bytes that stand beside a micro-batch in a step and are not allocated now, inside the trial."""
        weights = list(module.parameters())
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        optim = self.config.optim.name
        lora = self.config.model.lora
        base = "full" if lora is None else lora.base
        parts = planned(self.config, self.size, optim, trained, _NOTHING, micro, self.resident, base)
        steady = parts.moments["forward"] - parts.cast - (0.0 if module.device.type == "cuda" else parts.workspace)
        if module.device.type == "cuda":
            now = torch.cuda.memory_allocated(module.device)
        else:
            moments = [state for optimizer in module.trainer.optimizers for state in optimizer.state.values()]
            tensors = [t for state in moments for t in state.values() if isinstance(t, Tensor)]
            now = sum(tensor.nbytes for tensor in [*weights, *tensors])
        return max(0, round(steady * GIB) - now)


def _is_too_much(module: UnlearnModule, batch: Batch, to_come: int, micro: bool) -> bool:
    """Whether one forward and backward runs out of memory. The last gradient alone takes the whole way back; those of
    all weights are formed where a step's only backward has them besides."""
    weights = [weight for weight in module.engine.parameters() if weight.requires_grad]
    try:
        held = torch.empty(to_come, dtype=torch.uint8, device=module.device)
        with module.start() as start:
            reference = reference_states(batch, module.needs.reference, start or module.engine, module.store)
        step = module.engine(batch, module.terms, reference, module.weights)
        torch.autograd.grad(step.loss, weights[:1] if micro else weights, allow_unused=True)
        del held
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return True
    return False
