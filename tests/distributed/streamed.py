"""Two processes cut a model that is in its files: run by ``test_streamed.py`` with a place, a model and a strategy."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from deepspeed.runtime.zero import GatheredParameters

from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.models.load import load_pretrained
from lit_unlearn.models.settings import ModelConfig
from lit_unlearn.objectives.nll import NLL
from lit_unlearn.parallel import all_reduce_max, rank
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.strategies.whole import Sharded, own_part
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig, TrainerConfig
from lit_unlearn.training.trainer import build_trainer, prepare_device
from lit_unlearn.types import Role, Term


def peak() -> int:
    """Bytes of this process at most until now."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(status["VmHWM"].split()[0]) * 1024


def all_of(strategy: Sharded, weight: torch.nn.Parameter) -> torch.Tensor:
    """As the engine gathers it; what its optimizer holds is not there yet."""
    if not hasattr(weight, "ds_id"):
        return strategy.exact(weight)
    with GatheredParameters([weight]):
        return weight.detach().clone()


class Looked(UnlearnModule):
    """Notes what cutting took, and whether every weight is the file's."""

    def configure_model(self) -> None:
        before = peak()
        super().configure_model()
        strategy = self.trainer.strategy
        assert isinstance(strategy, Sharded)
        weights = list(self.engine.parameters())
        found = {"grown": all_reduce_max(peak() - before)}
        found["held"] = all_reduce_max(sum(own_part(weight).nbytes for weight in weights))
        whole = dict(known.named_parameters()) if known is not None else {}
        found["equal"] = sum(
            int(torch.equal(all_of(strategy, weight), whole[name]))
            for name, weight in self.engine.model.named_parameters()
            if whole
        )
        found["weights"] = len(whole)
        if rank() == 0:
            Path("found.json").write_text(json.dumps(found))
        raise SystemExit  # nothing is trained


path, strategy, compared = sys.argv[1], sys.argv[2], sys.argv[3] == "compared"
config = TrainerConfig(1, accelerator="cpu", devices=2, checkpoint_every_n_epochs=0, num_threads=1)
prepare_device(config)
known = load_pretrained(path, ModelConfig())[0] if compared else None
model, _ = load_pretrained(path, ModelConfig(), streamed=True)
data = UnlearnData({Role.retain: [Encoded(i, (5, 6), (8, 9 + i, 1)) for i in range(2)]}, 2, 0)
module = Looked(ScoringEngine(model), {"retain": Term(1.0, NLL(Role.retain))}, OptimConfig())
chosen = StrategyConfig(strategy, persistent_below=0)  # type: ignore[arg-type]
build_trainer(config, chosen, Path(), [], [], module.learns_partly).fit(module, data)
