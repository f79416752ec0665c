"""A run that settles its micro-batches under a limit of memory, then one that is given the same number.

`settling.py OUT.json NUM_PROCESSES STRATEGY ALLOWED_MIB`: the last rank may take that much more memory than it has when
the fit begins. Writes the number, how many rows of each role a rank has, and whether the weights are equal, bit by bit.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from pathlib import Path

import lightning as L
import torch
from transformers import LlamaForCausalLM

from lit_unlearn.config.schema import Config, ModelConfig, TermConfig
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.settings import DataConfig
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.memory.size import size_of
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.parallel import gather_by_key, rank, world_size
from lit_unlearn.run.early.trial import MicroBatches
from lit_unlearn.speed.workload.models import llama_config
from lit_unlearn.speed.workload.rows import step_rows
from lit_unlearn.speed.workload.shapes import Shape
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.strategies.whole import own_part
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig, TrainerConfig
from lit_unlearn.training.trainer import build_trainer
from lit_unlearn.types import Role, Term

SHAPE = Shape(4, 128, 512, 4, 2, 500, False)
ROWS, NUM_STEPS = 32, 2
TERMS = {role.value: Term(1.0, OBJECTIVES["nll"](role=role)) for role in (Role.forget, Role.retain)}


class Limited(L.Callback):
    """Before the trial, the same for all that follows; no mock: the allocator itself fails."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.allowed and rank() == world_size() - 1:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            held = int(next(line for line in lines if line.startswith("VmData:")).split()[1]) * 1024
            resource.setrlimit(resource.RLIMIT_DATA, (held + self.allowed, resource.RLIM_INFINITY))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Parts(L.Callback):
    """What this rank has of the weights after the last step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.weights = [own_part(weight).clone() for weight in pl_module.engine.parameters()]  # type: ignore[union-attr]


def fit(world: int, strategy: str, given: int | None, allowed: int, directory: Path) -> tuple[int, list[torch.Tensor]]:
    torch.manual_seed(0)
    shape = llama_config(SHAPE)
    shape.attention_dropout = 0.1  # random states count
    model = LlamaForCausalLM(shape)
    splits = step_rows("tofu", ROWS * world * NUM_STEPS, SHAPE.vocab, 0)
    data = UnlearnData({role: splits[role] for role in (Role.forget, Role.retain)}, ROWS * world, 0)
    module = UnlearnModule(ScoringEngine(model, 8), TERMS, OptimConfig(lr=1e-3), micro_batch_size=given)
    trainer_config = TrainerConfig(1, accelerator="cpu", devices=world, checkpoint_every_n_epochs=0)
    chosen = StrategyConfig(strategy, persistent_below=0)  # type: ignore[arg-type]
    config = Config(
        model=ModelConfig(logits_mib=8),
        data=DataConfig(micro_batch_size="auto"),
        terms={name: TermConfig(objective={"name": "nll"}) for name in TERMS},
        trainer=trainer_config,
        strategy=chosen,
    )
    parts = Parts()
    callbacks = [Limited(allowed), MicroBatches(config, size_of(model), data, False)] if given is None else []
    build_trainer(trainer_config, chosen, directory, [*callbacks, parts], []).fit(module, data)
    assert module.micro_batch_size is not None
    return module.micro_batch_size, parts.weights


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    out, world, strategy, allowed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]) * 2**20
    found, settled = fit(world, strategy, None, allowed, out.parent)
    _, given = fit(world, strategy, found, 0, out.parent)
    equal = gather_by_key({rank(): (found, all(map(torch.equal, settled, given)))})
    if rank() == 0:
        sizes, same = zip(*equal.values(), strict=True)
        out.write_text(json.dumps({"sizes": sizes, "equal": all(same)}))
