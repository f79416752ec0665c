"""Fits cases with a real trainer and writes each logged number and the last weights.

`trajectory.py OUT.json NUM_PROCESSES STRATEGY[+OFFLOAD][+blocks] MICRO_BATCH_SIZE [CASE ...]`; 0: no micro-batches.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import sys
from pathlib import Path

import lightning as L
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lit_unlearn.callbacks.belief_sampler import BeliefSampler
from lit_unlearn.callbacks.gradient_shares import GradientShares
from lit_unlearn.callbacks.reference_cache import ReferenceCache
from lit_unlearn.callbacks.settings import BeliefConfig
from lit_unlearn.data.beliefs import BeliefStore
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.ends import AnswerEnd
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.models.adapters.lora import add_adapters
from lit_unlearn.models.settings import LoraConfig
from lit_unlearn.models.tiny import train_tokenizer
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.recording.history import History, read_history
from lit_unlearn.reference.plan import plan_reference
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.strategies.whole import consolidate
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig, TrainerConfig
from lit_unlearn.training.trainer import build_trainer
from lit_unlearn.training.trainer import fit as train
from lit_unlearn.types import Role, Term, union_of_needs

BATCH_SIZE, NUM_EPOCHS, VOCABULARY = 4, 3, 41  # odd: no two ranks get equal parts
END = AnswerEnd(train_tokenizer(["some text"], 300), 1, (1, 2, 3))
LENGTHS = {Role.forget: (5, 1, 9, 3, 12, 2, 6, 1, 8, 4, 7), Role.retain: (2, 8, 3, 11, 1, 6, 4)}


def term(weight: float, name: str, **fields) -> Term:
    return Term(weight, OBJECTIVES[name](**fields))


BELIEF, NLL = {"role": Role.belief}, term(1.0, "nll")
RESIDENT, ADAPTERS, TIED = ", a resident reference", ", adapters", ", tied"
CASES: dict[str, tuple[dict[str, Term], BeliefConfig]] = {
    "npo": ({"forget": term(1.0, "npo"), "retain": NLL}, BeliefConfig()),
    "kl": ({"forget": term(0.5, "grad_ascent"), "retain": term(1.0, "kl")}, BeliefConfig()),
    "npo" + TIED: ({"forget": term(1.0, "npo"), "retain": NLL}, BeliefConfig()),
    "bst": ({"forget": term(1.0, "bst"), "retain": NLL}, BeliefConfig()),
    "rmu": (
        {"forget": term(1.0, "rmu", layer=0), "retain": term(1.0, "hidden_match", layer=0)},
        BeliefConfig(),
    ),
    "bss": (
        {"forget": term(0.5, "bst"), "belief": term(0.5, "bst", **BELIEF), "retain": NLL},
        BeliefConfig(num_samples=3, temperature=1.0, max_new_tokens=6, every_n_epochs=1, batch_size=8),
    ),
    "bss, stale beliefs only": (
        {"forget": term(0.5, "bst"), "belief": term(0.5, "bst", **BELIEF), "retain": NLL},
        BeliefConfig(2, 1.0, 1.0, 6, every_n_epochs=1, stale_after=0.5, batch_size=8),
    ),
    "npo, with the share of each term": (
        {"forget": term(1.0, "npo"), "retain": NLL},
        BeliefConfig(),
    ),
    "kl" + RESIDENT: ({"forget": term(1.0, "npo"), "retain": term(1.0, "kl")}, BeliefConfig()),
    "npo" + ADAPTERS: ({"forget": term(1.0, "npo"), "retain": term(1.0, "kl")}, BeliefConfig()),
    "bss on npo, all beliefs, windows of two steps": (
        {"forget": term(0.5, "npo"), "belief": term(0.5, "npo", **BELIEF)},
        BeliefConfig(2, 1.0, 1.0, 6, every_n_epochs=None, every_n_steps=2, per_step="all", batch_size=8),
    ),
}


class Record(L.Callback):
    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        logged = trainer.callback_metrics.items()
        self.steps.append({name: value.item() for name, value in logged if name.startswith("train/")})


def split(role: Role) -> list[Encoded]:
    draw = random.Random(role.value)
    ids = lambda count: tuple(draw.randrange(4, VOCABULARY) for _ in range(count))  # noqa: E731
    return [Encoded(100 + i, ids(2 + i % 4), (*ids(length - 1), 1)) for i, length in enumerate(LENGTHS[role])]


def fit(
    case: str,
    world: int,
    strategy: str,
    micro: int | None,
    directory: Path,
    dropout: float = 0.0,
    every_n_steps: int = 0,
) -> list[dict[str, float]]:
    """What was logged of each step, after the last checkpoint in ``directory``; of adapters with ``dropout``."""
    terms, config = CASES[case]
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        tie_word_embeddings=TIED in case,
    )
    model = LlamaForCausalLM(shape)
    needs = union_of_needs(terms)
    plan = plan_reference(needs, "resident" if RESIDENT in case else "auto", ADAPTERS in case)
    roles = [role for role in (Role.forget, Role.retain) if role in needs.policy]
    store = BeliefStore(config.per_step) if Role.belief in needs.policy else None
    data = UnlearnData({role: split(role) for role in roles}, BATCH_SIZE, 0, store)
    reference = ScoringEngine(copy.deepcopy(model)) if plan.resident else None
    if ADAPTERS in case:
        add_adapters(model, LoraConfig(rank=4, alpha=16.0, dropout=dropout))
    optim = OptimConfig(lr=3e-3, warmup_epochs=0, eps=1e-4)
    engine = ScoringEngine(model)
    module, record = UnlearnModule(engine, terms, optim, reference, micro), Record()
    callbacks: list[L.Callback] = [record]
    if plan.stored:
        callbacks.append(ReferenceCache(data, plan.stored, 3, directory, engine))
    if store is not None:
        callbacks.append(BeliefSampler(store, data, config, END, seed=0))
    shares = History(directory / "shares")
    if "share" in case:
        callbacks.append(GradientShares(1))
    config = TrainerConfig(NUM_EPOCHS, accelerator="cpu", devices=world, gradient_clip=1.0, checkpoint_every_n_epochs=0)
    config.checkpoint_every_n_steps, config.keep_checkpoints = every_n_steps, 99
    name, *rest = strategy.split("+")
    gathering = "blocks" if "blocks" in rest else "whole"
    offload = next((word for word in rest if word != "blocks"), "none")
    chosen = StrategyConfig(name, offload, persistent_below=0, gathering=gathering)  # type: ignore[arg-type]
    loggers = [shares] if "share" in case else []
    trainer = build_trainer(config, chosen, directory, callbacks, loggers, module.learns_partly)
    train(trainer, module, data, directory)
    assert trainer.world_size == world
    consolidate(trainer.strategy, model)
    if trainer.is_global_zero:
        (directory.parent / "weights").mkdir(exist_ok=True)
        weights = {name: weight.detach().contiguous() for name, weight in model.named_parameters()}
        save_file(weights, directory.parent / "weights" / f"{case}.safetensors")
    if "share" in case and trainer.is_global_zero:
        for key, points in read_history(shares.path).items():
            for step, value in points if key.startswith("gradient/") else ():
                record.steps[step][key] = value
    return record.steps


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    out, world, strategy, micro = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]) or None
    cases = sys.argv[5:] or CASES
    found = {case: fit(case, world, strategy, micro, out.parent / f"reference_{world}") for case in cases}
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(found))
