"""Reads a model whose weights lie in pieces, with other work on each rank.  `reading.py OUT.json STRATEGY GATHERING`"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import lightning as L
import torch
from transformers import LlamaForCausalLM

from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.answers import ScoredAnswer, score_answers
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.generation.generate import Prompt, generate
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.parallel import gather_by_key, rank
from lit_unlearn.speed.workload.models import llama_config
from lit_unlearn.speed.workload.shapes import Shape
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig, TrainerConfig
from lit_unlearn.training.trainer import build_trainer
from lit_unlearn.types import Role, Term

ROWS = [Encoded(i, (3 + i, 5, 7 + i), tuple(range(9, 12 + i))) for i in range(6)]
SHARES = {0: ROWS[:5], 1: ROWS[5:]}


class Read(L.Callback):
    """Before the first step: what a read outside of the gather says, then each rank's own number of batches of one row,
    of its own lengths."""

    def __init__(self) -> None:
        self.found: dict[str, object] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        engine, shares = pl_module.engine, [SHARES[rank()]] if trainer.world_size > 1 else SHARES.values()
        if trainer.world_size > 1:
            try:
                score_answers(engine, ROWS, 1)
            except RuntimeError as error:
                self.found["refused"] = str(error)
        with pl_module.reading():
            answers = {row.id: answer for rows in shares for row, answer in self._scored(engine, rows)}
            self.found["logps"] = gather_by_key({id: answer.logps for id, answer in answers.items()})
            said = {row.id: self._say(engine, row) for rows in shares for row in rows}
            self.found["said"] = gather_by_key(said)

    def _scored(self, engine: ScoringEngine, rows: list[Encoded]) -> list[tuple[Encoded, ScoredAnswer]]:
        return list(zip(rows, score_answers(engine, rows, 1), strict=True))

    def _say(self, engine: ScoringEngine, row: Encoded) -> tuple[int, ...]:
        return generate(engine.model, [Prompt(row.prompt)], [1], 2 + 3 * row.id, 1)[0]


def main(out: Path, strategy: str, gathering: str) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(Shape(3, 16, 32, 2, 2, 41, False)))
    terms = {"retain": Term(1.0, OBJECTIVES["nll"]())}
    module, read = UnlearnModule(ScoringEngine(model), terms, OptimConfig(), None, None), Read()
    data = UnlearnData({Role.retain: ROWS}, 6, 0)
    world = 1 if strategy == "single" else 2
    config = TrainerConfig(1, accelerator="cpu", devices=world, checkpoint_every_n_epochs=0)
    chosen = StrategyConfig(strategy, persistent_below=0, gathering=gathering)  # type: ignore[arg-type]
    build_trainer(config, chosen, out.parent, [read], [], False).fit(module, data)
    if rank() == 0:
        out.write_text(json.dumps(read.found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
