"""Each term's share in the gradient: against gradients taken term by term, and without a trace in the training."""

import copy
from pathlib import Path

import lightning as L
import pytest
import torch

from lit_unlearn.callbacks.gradient_shares import GradientShares
from lit_unlearn.callbacks.schedules.gradient_rectification import GradientRectification
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.models.adapters.lora import add_adapters
from lit_unlearn.models.blocks import checkpoint_blocks
from lit_unlearn.models.settings import Checkpointing, LoraConfig
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.recording.history import History, read_history
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import Batch, Role, Term
from tests.configs import load

TERMS = {
    "forget": Term(0.5, OBJECTIVES["grad_ascent"]()),
    "match": Term(2.0, OBJECTIVES["rmu"](layer=1, coefficient=3.0)),
    "retain": Term(1.0, OBJECTIVES["nll"]()),
}


class Moves(L.Callback):
    """Keeps the batches and the weights they met."""

    def __init__(self) -> None:
        self.met: list[tuple[Batch, dict[str, torch.Tensor]]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.met.append((batch, {n: w.detach().clone() for n, w in pl_module.named_parameters()}))


@pytest.fixture
def run(policy, make_encoded, tmp_path: Path):
    """(steps, module, shares by key, batches and weights) of six steps from the same start each time."""

    def go(*callbacks: L.Callback, lora=False, checkpointing: Checkpointing = "none", terms=TERMS, name="run"):
        torch.manual_seed(3)
        model = copy.deepcopy(policy)
        if lora:
            add_adapters(model, LoraConfig(rank=4, dropout=0.3))
        checkpoint_blocks(model, checkpointing)
        module = UnlearnModule(ScoringEngine(model), terms, OptimConfig(lr=1e-2, warmup_epochs=0))
        rows = {Role.forget: make_encoded((5, 1, 9, 3, 4, 7)), Role.retain: make_encoded((2, 8, 3, 6), seed=1)}
        moves, steps = Moves(), []

        class Record(L.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
                steps.append({key: value.item() for key, value in trainer.callback_metrics.items()})

        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=3,
            gradient_clip_val=0.5,
            logger=History(tmp_path / name),
            log_every_n_steps=1,
            callbacks=[*callbacks, moves, Record()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, UnlearnData(rows, 4, seed=0))
        history = read_history(tmp_path / name / "history.csv")
        return steps, module, {key: points for key, points in history.items() if key.startswith("gradient/")}, moves

    return go


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": True}, {"checkpointing": "full", "lora": True}],
    ids=["plain", "lora with dropout", "recomputed, with dropout"],
)
def test_training_is_the_same_to_the_bit(run, options):
    plain, module, nothing, _ = run(**options, name="plain")
    state = torch.get_rng_state()
    shared, watched, shares, _ = run(GradientShares(2), **options, name="shared")
    assert not nothing
    assert [step for step, _ in shares["gradient/forget_norm"]] == [0, 2, 4]
    assert shared == plain
    assert torch.equal(torch.get_rng_state(), state)
    weights = list(zip(module.parameters(), watched.parameters(), strict=True))
    assert all(torch.equal(left, right) for left, right in weights)
    assert any(weight.requires_grad for weight, _ in weights)
    assert len({step["train/loss"] for step in plain}) == 6


def test_shares_are_those_of_gradients_taken_term_by_term(run):
    steps, module, shares, moves = run(GradientShares(3))
    for number, step in enumerate((0, 3)):
        batch, state = moves.met[step]
        module.load_state_dict(state)
        engine = module.engine.train()
        own = {}
        for name, term in TERMS.items():
            engine.zero_grad()
            engine(batch, {name: term}, {}).loss.backward()
            grads = [w.grad if w.grad is not None else torch.zeros_like(w) for w in engine.parameters()]
            own[name] = torch.cat([grad.flatten() for grad in grads]).double()
        whole = torch.stack(list(own.values())).sum(0)
        for name, grad in own.items():
            assert shares[f"gradient/{name}_norm"][number][1] == pytest.approx(grad.norm().item(), rel=1e-4)
            cosine = (grad @ whole / grad.norm() / whole.norm()).item()
            assert shares[f"gradient/{name}_cosine"][number][1] == pytest.approx(cosine, abs=1e-4)
            assert abs(cosine) > 1e-3
        assert steps[step]["train/grad_norm"] == pytest.approx(whole.norm().item(), rel=1e-4)


def test_they_are_of_the_gradient_before_it_is_rectified(run):
    terms = {name: TERMS[name] for name in ("forget", "retain")}
    alone, _, shares, _ = run(GradientRectification(), terms=terms, name="alone")
    steps, _, shares, _ = run(GradientRectification(), GradientShares(1), terms=terms, name="both")
    assert steps == alone
    assert any(step["train/gru_projected"] for step in steps)
    raw = sum(shares[f"gradient/{name}_norm"][0][1] * shares[f"gradient/{name}_cosine"][0][1] for name in terms)
    assert raw > 0
    projected = next(number for number, step in enumerate(steps) if step["train/gru_projected"])
    raw = sum(
        shares[f"gradient/{name}_norm"][projected][1] * shares[f"gradient/{name}_cosine"][projected][1]
        for name in terms
    )
    assert raw != pytest.approx(steps[projected]["train/grad_norm"], rel=1e-3)


def test_a_term_that_weighs_nothing_has_no_direction(run):
    terms = {"forget": Term(0.0, TERMS["forget"].objective), "retain": TERMS["retain"]}
    _, _, shares, _ = run(GradientShares(2), terms=terms)
    assert {value for _, value in shares["gradient/forget_norm"]} == {0.0}
    assert "gradient/forget_cosine" not in shares
    assert [value for _, value in shares["gradient/retain_cosine"]] == pytest.approx([1.0] * 3)


def test_what_cannot_share_says_so_in_one_line():
    shares, checkpointing = "logging.gradient_shares_every_n_steps=5", "model.gradient_checkpointing=selective"
    in_backward = ["optim.name=adamw_in_backward", "trainer.gradient_clip=null"]
    with pytest.raises(UserError, match=r"keeps no gradient for logging\.gradient_shares_every_n_steps: set optim"):
        load(["conf=quickstart", shares, *in_backward])
    with pytest.raises(UserError, match=r"gradient_shares_every_n_steps goes back .* set it to none or full"):
        load(["conf=quickstart", shares, checkpointing])
    with pytest.raises(UserError, match=r"gradient_rectification goes back .* set it to none or full"):
        load(["conf=quickstart", "schedules.gradient_rectification={}", checkpointing])
    load(["conf=quickstart", shares, "finetune.optim.name=adamw_in_backward", "trainer.gradient_clip=null"])
