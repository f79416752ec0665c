"""Peak of a rank's memory in a step of a 43M Llama, as the operating system counts it.

`footprint.py OUT.json NUM_PROCESSES STRATEGY NUM_ROWS CHECKPOINTING`; rows of each role a rank. The size of the process
when a tiny model has been fitted the same way is taken off: libraries, gloo.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import sys
from pathlib import Path

import lightning as L
import torch
from transformers import LlamaForCausalLM

from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.models.blocks import checkpoint_blocks
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.parallel import gather_by_key, rank
from lit_unlearn.speed.workload.models import llama_config
from lit_unlearn.speed.workload.rows import step_rows
from lit_unlearn.speed.workload.shapes import SHAPES
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig, TrainerConfig
from lit_unlearn.training.trainer import build_trainer
from lit_unlearn.types import Role, Term

TERMS = {role.value: Term(1.0, OBJECTIVES["nll"](role=role)) for role in (Role.forget, Role.retain)}
NUM_STEPS, MEASURED = 4, 2
"""The first two steps, which make what stays, are not."""
LOGITS_MIB = 64


def resident(field: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


class Peak(L.Callback):
    bytes = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == MEASURED:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from VmRSS

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.bytes = resident("VmHWM")


def fit(shape: str, world: int, strategy: str, rows: int, checkpointing: str, directory: Path) -> int:
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(SHAPES[shape]))
    checkpoint_blocks(model, checkpointing)  # type: ignore[arg-type]
    module = UnlearnModule(ScoringEngine(model, LOGITS_MIB), TERMS, OptimConfig())
    splits = step_rows("tofu", rows * world * NUM_STEPS, SHAPES[shape].vocab, 0)
    data = UnlearnData({role: splits[role] for role in (Role.forget, Role.retain)}, rows * world, 0)
    config = TrainerConfig(1, accelerator="cpu", devices=world, checkpoint_every_n_epochs=0)
    peak = Peak()
    chosen = StrategyConfig(strategy, persistent_below=0)  # type: ignore[arg-type]
    build_trainer(config, chosen, directory, [peak], []).fit(module, data)
    return peak.bytes


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    out, world, strategy, rows = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    fit("tiny", world, strategy, rows, sys.argv[5], out.parent)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    peak = fit("llama43m", world, strategy, rows, sys.argv[5], out.parent) - before
    peaks = gather_by_key({rank(): peak})
    if rank() == 0:
        out.write_text(json.dumps(list(peaks.values())))
