"""The benchmark tool: its gate, its counts and its memory plan; no test looks at a time."""

import json
import subprocess
import sys
from dataclasses import replace
from statistics import fmean, quantiles

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from lit_unlearn.command.arguments import parse
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.errors import UserError
from lit_unlearn.memory.network import traffic
from lit_unlearn.memory.presets import PRESETS
from lit_unlearn.memory.settings import Network
from lit_unlearn.memory.size import GIB, smallest_card
from lit_unlearn.memory.step import lora_parts, step_parts
from lit_unlearn.memory.tokens import Tokens, count_tokens
from lit_unlearn.objectives import WGA
from lit_unlearn.speed.__main__ import load
from lit_unlearn.speed.measure.decoding import belief_costs
from lit_unlearn.speed.measure.evaluation import evaluate
from lit_unlearn.speed.measure.flops import useful_flops
from lit_unlearn.speed.measure.memory import resident_peak
from lit_unlearn.speed.measure.parity import TOLERANCES, Parity, check
from lit_unlearn.speed.measure.step import Turns, optimizer_seconds, step_cell
from lit_unlearn.speed.measure.timing import Sample, interleave, ratio
from lit_unlearn.speed.plan.named import model_size
from lit_unlearn.speed.workload import ours, plain
from lit_unlearn.speed.workload.cells import Spec, build
from lit_unlearn.speed.workload.models import llama_config, random_models
from lit_unlearn.speed.workload.objectives import CELLS
from lit_unlearn.speed.workload.rows import question_rows, step_rows
from lit_unlearn.speed.workload.shapes import SHAPES, Shape
from lit_unlearn.training.optim import adamw
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import Role

CPU = torch.device("cpu")
SPEC = Spec(SHAPES["tiny"], "npo", 3, "tofu", 0, CPU, "32-true")
ONCE = Turns(1, 0)
NO_TOKENS = Tokens(0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def models():
    return random_models(SHAPES["tiny"], 0, CPU)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("objective", CELLS)
def test_plain_and_ours_agree(models, objective, precision):
    cell = build(replace(SPEC, objective=objective, precision=precision), models)
    assert len(cell.terms) == len(CELLS[objective])
    parity = check(cell)
    assert parity.within(TOLERANCES[precision]), parity


def break_loss(monkeypatch):
    monkeypatch.setattr(ours, "step", lambda *given, step=ours.step: step(*given) * (1 + 3e-5))


def break_one_term(monkeypatch):
    """Right together, wrong alone: the retain term takes what the forget term loses."""
    step = ours.step
    monkeypatch.setattr(ours, "step", lambda e, b, t, *rest: step(e, b, t, *rest) + (1e-3 if len(t) == 1 else 0.0))


def break_gradient_only(monkeypatch):
    """WGA's weight with a gradient: the same value, another direction."""

    def wga(policy, start, rows, objective):
        nll = plain.token_nll(plain.forward(policy, rows).logits, rows.labels)
        return plain._token_mean(-((-nll).exp() ** objective.beta) * nll, rows)

    monkeypatch.setitem(plain._TERMS, WGA, wga)


def break_gradient_length(monkeypatch):
    """The same value and direction, twice the gradient."""
    step = ours.step
    monkeypatch.setattr(ours, "step", lambda *given: 2 * (loss := step(*given)) - loss.detach())


def break_together_only(monkeypatch):
    """Each term alone is right, together one is left out of the gradient."""
    step = ours.step

    def joined(engine, batch, terms, *rest):
        names = list(terms)
        parts = [step(engine, batch, {name: terms[name]}, *rest) for name in names]
        return parts[0] + sum((part.detach() for part in parts[1:]), torch.zeros(()))

    monkeypatch.setattr(ours, "step", joined)


FAULTS = [break_loss, break_one_term, break_gradient_only, break_gradient_length, break_together_only]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_gate_refuses_what_differs(models, monkeypatch, fault):
    cell = build(replace(SPEC, objective="wga"), models)
    fault(monkeypatch)
    result = step_cell(cell, ONCE, 1e9)
    assert result["failed"] == "paths disagree"
    assert "seconds" not in result
    assert "ratio" not in result


@pytest.mark.parametrize("precision", TOLERANCES)
def test_each_of_the_three_limits_counts(precision):
    limit = TOLERANCES[precision]
    good = Parity(limit.loss * 0.9, limit.cosine + 1e-5, limit.norm * 0.9)
    assert good.within(limit)
    faults = {"loss_error": limit.loss * 1.1, "cosine": limit.cosine - 1e-5, "norm_error": limit.norm * 1.1}
    for field, value in [*faults.items(), *dict.fromkeys(faults, float("nan")).items()]:
        assert not replace(good, **{field: value}).within(limit), field


def test_a_stale_reference_cache_is_seen(models):
    cell = build(SPEC, models)
    rows = cell.batch[Role.forget]
    assert rows.reference_logps is not None
    cell = replace(cell, batch={**cell.batch, Role.forget: replace(rows, reference_logps=rows.reference_logps - 0.1)})
    assert not check(cell).within(TOLERANCES["32-true"])


def test_a_cell_and_the_optimizer_report_all_numbers(models):
    before = [parameter.clone() for parameter in models.policy.parameters()]
    cell = build(SPEC, models)
    result = step_cell(cell, ONCE, 1e9)
    assert result["second_model"] == {"plain": True, "ours": False}
    assert {"seconds", "ratio", "real_tokens_per_second", "useful_mfu", "tokens", "parity"} <= result.keys()
    assert optimizer_seconds(cell, ONCE)["wall"] > 0
    assert all(map(torch.equal, before, models.policy.parameters()))
    assert all(parameter.grad is None for parameter in models.policy.parameters())


def test_tokens_by_hand():
    forget = [Encoded(0, (2, 3, 4), (5, 1)), Encoded(1, (2, 3, 9), (1,))]
    retain = [Encoded(0, (2, 3, 4, 5), (7,)), Encoded(1, (8,), (1,))]
    # The trie: 2-3, then 4-5-(1|7) and 9-1, and 8-1. Depths: 1+2 + 3+4+5+5 + 3+4 + 1+2.
    counted = count_tokens({Role.forget: forget, Role.retain: retain})
    assert counted == Tokens(padded=2 * 5 + 2 * 5, real=5 + 4 + 5 + 2, unique=10, answer=2 + 1 + 1 + 1, context=30)


def test_tofu_lengths():
    rows = step_rows("tofu", 2000, 160, 0)[Role.forget]
    answers = [len(row.answer) for row in rows]
    assert 37 < fmean(answers) < 43
    assert 56 < quantiles(answers, n=10)[-1] < 65
    assert max(answers) <= 96
    assert {len(row.prompt) for row in rows} == set(range(38 + 15, 38 + 21))
    assert len({row.prompt[:38] for row in rows}) == 1


def test_rows_of_a_step():
    rows = step_rows((3, 4, 5), 6, 160, 1)
    assert rows == step_rows((3, 4, 5), 6, 160, 1) != step_rows((3, 4, 5), 6, 160, 2)
    assert {(len(row.prompt), len(row.answer)) for block in rows.values() for row in block} == {(7, 5)}
    for forget, belief in zip(rows[Role.forget], rows[Role.belief], strict=True):
        assert (forget.id, forget.prompt) == (belief.id, belief.prompt)
        assert forget.answer != belief.answer
    assert {len(row.prompt + row.answer) for row in step_rows("muse", 2, 160, 0)[Role.retain]} == {2048}
    questions = question_rows("tofu", 2, 7, 160, 0)
    assert [len({row.prompt for row in question}) for question in questions] == [1, 1]
    assert [len({row.answer for row in question}) for question in questions] == [7, 7]


def test_useful_flops_are_what_torch_counts():
    """One row, all of it labelled but the first token: nothing is shared or padded."""
    shape = Shape(3, 32, 64, 4, 2, 160, False)
    config = llama_config(shape)
    config._attn_implementation = "eager"
    rows = {Role.forget: [Encoded(0, (2,), tuple(range(3, 14)))]}
    tokens, terms = count_tokens(rows), replace(SPEC, objective="grad_ascent").terms
    model, length = LlamaForCausalLM(config), 12
    with FlopCounterMode(display=False) as counter:
        model.model(torch.tensor([rows[Role.forget][0].prompt + rows[Role.forget][0].answer]), use_cache=False)
    all_pairs, causal = length**2, length * (length + 1) // 2
    body = counter.get_total_flops() - 3 * 4 * 32 * (all_pairs - causal)
    assert useful_flops(shape, tokens, terms) == 3 * (body + 2 * 160 * 32 * 11)
    rmu = replace(SPEC, objective="rmu").terms  # block 1 of 3, no head
    assert useful_flops(shape, tokens, rmu) == 3 * body * 2 / 3


def test_turns_are_interleaved():
    seen = []
    samples = interleave(
        {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 2, 1, CPU, before=lambda: seen.append("-")
    )
    assert "".join(seen) == "-a-b-a-b-a-b"
    assert [len(found) for found in samples.values()] == [2, 2]
    over, under = ([Sample(1.0, seconds) for seconds in times] for times in ((6.0, 3.0, 8.0), (2.0, 3.0, 2.0)))
    found = ratio(over, under, "cpu")  # 3, 1, 4
    assert (found.median, found.low, found.high) == (3.0, 1.0, 4.0)


def test_resident_peak_is_what_was_allocated():
    def run() -> None:
        for _ in range(2):
            torch.ones(64 * 2**18)  # 64 MiB, freed before the next

    assert 60 < resident_peak(run) / 2**20 < 90


def test_evaluation_and_beliefs(models, monkeypatch):
    result = evaluate(SPEC, models, ONCE, 2)
    assert result["parity"]["passed"]
    assert result["questions"] == 4
    assert result["ratio"]
    costs = belief_costs(SPEC, models, ONCE, 2)
    assert costs["sampling_share"] > 0
    assert set(costs["seconds"]) == {"grad_ascent", "bst_alone", "npo", "bss"}
    monkeypatch.setattr(plain, "token_nll", lambda *given, nll=plain.token_nll: nll(*given) * 1.001)
    broken = evaluate(SPEC, models, ONCE, 2)
    assert not broken["parity"]["passed"]
    assert "seconds" not in broken


STATES = {  # GiB: bytes a weight times 1.236e9, 3.213e9 and 8.030e9 weights
    "adamw": (18.4, 47.9, 119.7),  # 4 + 4 + 8
    "adamw_master": (20.7, 53.9, 134.6),  # 2 + 4 + 4 + 8
    "adamw_split16": (16.1, 41.9, 104.7),  # 2 + 2 + 2 + 8
    "adamw_8bit": (8.0, 19.6, 49.1),  # 2 + 2 + 2.03, and 2 + 2 more for 0.263e9, 0.394e9, 1.051e9 outside the blocks
}


@pytest.fixture(scope="module")
def sizes():
    return {name: model_size(name) for name in ("llama1b", "llama3b", "llama8b")}


def test_states_by_hand(sizes):
    for preset, expected in STATES.items():
        fixed = [step_parts(size, preset, NO_TOKENS).fixed for size in sizes.values()]
        assert fixed == pytest.approx(expected, abs=0.15), preset
    big = sizes["llama8b"]
    assert big.parameters == 8_030_261_248
    assert step_parts(big, "adamw_bf16", NO_TOKENS, resident=True).fixed == pytest.approx(104.7, abs=0.1)
    in_backward = step_parts(big, "adamw_8bit_in_backward", NO_TOKENS)
    assert in_backward.fixed - in_backward.gradients == pytest.approx(30.2, abs=0.1)
    assert in_backward.gradients == pytest.approx(2 * 128256 * 4096 / GIB)  # the largest tensor's
    lora = [lora_parts(size, "adamw_8bit", NO_TOKENS).fixed for size in sizes.values()]
    assert lora == pytest.approx([2.9, 7.0, 17.3], abs=0.15)  # bf16 blocks, float32 ends, 42 M adapters of 8B


@pytest.mark.parametrize(
    ("strategy", "num_gpus", "expected"),
    [  # bytes a weight under bf16-mixed, without and with a resident reference, in which it lies as the policy does
        ("zero3", 8, (18 / 8, 20 / 8)),  # bf16 weights, float32 sums of gradients, masters, two moments
        ("zero3", 2, (18 / 2, 20 / 2)),
        ("zero2", 4, (2 + 16 / 4, 4 + 16 / 4)),
        ("zero1", 4, (2 + 14 / 4, 4 + 14 / 4)),  # gradients stay bf16
        ("fsdp2", 8, (16 / 8, 20 / 8)),  # float32 pieces, no master
        ("ddp", 8, (16, 20)),
    ],
)
def test_strategies_by_hand(sizes, strategy, num_gpus, expected):
    size = sizes["llama8b"]
    cut = {"strategy": strategy, "num_gpus": num_gpus}
    fixed = [step_parts(size, "adamw", NO_TOKENS, resident=resident, **cut).fixed for resident in (False, True)]
    assert fixed == pytest.approx([width * size.parameters / GIB for width in expected])


def test_the_peaks_of_llama_8b(sizes):
    """gpu.md's accounts of one card: 122 GiB with whole blocks checkpointed, 137 without."""
    size, rows = sizes["llama8b"], step_rows("tofu", 32, 128256, 0)
    tokens = count_tokens({role: rows[role] for role in (Role.forget, Role.retain)})
    full, none = (step_parts(size, "adamw", tokens, checkpointing=checkpointing) for checkpointing in (True, False))
    stay = (4 + 8) * 8.030 * 1e9 / GIB + 1.0
    assert full.moments["backward"] == full.total == pytest.approx(stay + 29.9 + 0.86 + 0.41, abs=0.1)
    assert none.moments["forward"] == none.total == pytest.approx(stay + 27.4 + 13.0 + 4.9 + 0.5, abs=0.1)
    micro = step_parts(size, "adamw", tokens, checkpointing=True, micro=True)
    assert micro.moments["forward"] == pytest.approx(full.moments["forward"] + full.gradients)
    host = step_parts(size, "adamw", tokens, strategy="zero3", num_gpus=8, offload="parameters")
    assert host.host == pytest.approx(18 * size.parameters / 8 / GIB)
    assert host.fixed == 0


def test_traffic_is_that_of_the_zero_paper(sizes):
    """Section 7 counts 2, 2 and 3 times the parameters, here of two bytes each; DeepSpeed all-reduces where it counts a
    reduce-scatter. 7 of 8 parts go to other GPUs."""
    size, network = sizes["llama8b"], Network(node_gpus=4, link_gbs=100, node_link_gbs=10, tflops=100, mfu=0.5)
    tokens = Tokens(padded=2000, real=1000, unique=1000, answer=100, context=0)
    sent = {name: traffic(size, tokens, name, 8, network) for name in ("zero1", "zero2", "zero3", "fsdp2", "ddp")}
    volume = {name: (t.gathered + t.reduced) / (2 * size.parameters * 7 / 8) for name, t in sent.items()}
    ends = size.ends / size.parameters
    assert volume == pytest.approx({"zero1": 3, "zero2": 3, "zero3": 3, "fsdp2": 4 - ends, "ddp": 4})
    flops = 6 * size.blocks * 1000 + 6 * 128256 * 4096 * 100
    assert sent["ddp"].compute_seconds == pytest.approx(flops / (100e12 * 0.5))
    assert sent["zero3"].seconds == pytest.approx(6 * size.parameters * 7 / 8 / 40e9)  # four cards of 10 GB/s
    assert traffic(size, tokens, "zero3", 4, network).seconds == pytest.approx(6 * size.parameters * 3 / 4 / 100e9)
    many = traffic(size, tokens, "zero2", 8, network, micro_batches=4)
    assert (many.gathered, many.reduced) == (sent["zero2"].gathered, 4 * sent["zero2"].reduced)
    again = traffic(size, tokens, "zero3", 8, network, checkpointing=True)
    assert again.compute_seconds - sent["zero3"].compute_seconds == pytest.approx(2 * size.blocks * 1000 / 50e12)


def test_states_are_the_bytes_of_a_real_run(models):
    policy = models.policy
    build(SPEC, models).step("ours")
    optimizer = adamw(policy.parameters(), OptimConfig(lr=1e-30))
    optimizer.step()
    states = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    grads = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    policy.zero_grad(set_to_none=True)
    count = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    planned = step_parts(model_size("tiny"), "adamw", NO_TOKENS)
    real = [count(policy.parameters()), count(grads), count(states)]
    assert [planned.weights * GIB, planned.gradients * GIB, planned.states * GIB] == real


@pytest.mark.parametrize("cast", [False, True])
def test_activations_are_those_that_autograd_keeps(cast):
    """The difference of two depths, whatever embedding and final norm keep."""
    num_tokens = 3 * 25

    def kept(layers: int) -> tuple[int, int]:
        """(activation bytes, bytes of weights' bf16 copies)."""
        model = LlamaForCausalLM(llama_config(Shape(layers, 128, 448, 8, 2, 160, False)))
        model = model if cast else model.bfloat16()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        matrices = {s for p in model.parameters() if p.dim() == 2 for s in (p.shape, p.T.shape)}
        saved: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=cast):
            hidden = model.model(torch.randint(0, 160, (3, 25)), use_cache=False).last_hidden_state
        assert hidden.requires_grad
        ours = [tensor for storage, tensor in saved.items() if storage not in weights]
        copies = sum(t.untyped_storage().nbytes() for t in ours if t.shape in matrices)
        return sum(t.untyped_storage().nbytes() for t in ours) - copies, copies

    (low, low_copies), (high, high_copies) = kept(2), kept(4)
    size = replace(model_size("tiny"), layers=2, hidden=128, intermediate=448, kv_share=0.25)
    assert (high - low) / num_tokens == pytest.approx(size.activation_bytes(cast), rel=0.01)
    assert high_copies - low_copies == (2 * 2 * (2 * 128 * 160 + 3 * 128 * 448) if cast else 0)


def test_activations_of_the_guide(sizes):
    assert sizes["llama8b"].activation_bytes(cast=False) / 2**20 == pytest.approx(6.13, abs=0.02)


def test_smallest_card():
    assert [smallest_card(gib, [80, 24, 48]) for gib in (23.0, 24.0, 77.0, 79.0)] == [24, 48, 80, None]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["shape=[tiny]"], "shape"),
        (["shapes=[huge]"], "llama43m"),
        (["shapes=[]"], "shapes"),
        (["objectives=[dpo]"], "grad_diff"),
        (["what=[speed]"], "slope"),
        (["lengths=long"], "muse"),
        (["lengths=[1,2]"], "answer"),
        (["lengths=[0,0,4]"], "prompt"),
        (["rows=0"], "rows"),
        (["warmups=-1"], "warmups"),
        (["precision=fp8"], "precision"),
        (["cards=[]"], "cards"),
        (["network.mfu=2"], "mfu"),
        (["plan=true"], "model"),
        (["model=llama8b"], "plan"),
        (["rows"], "key=value"),
        (["shapes=[tiny"], "YAML"),
    ],
)
def test_wrong_arguments_are_named(arguments, named):
    with pytest.raises(UserError, match=named):
        load(parse(arguments))


def test_a_model_without_config_is_refused(tmp_path):
    with pytest.raises(UserError, match="the directory holds no"):
        model_size(str(tmp_path))
    llama_config(SHAPES["tiny"]).save_pretrained(tmp_path)
    assert model_size(str(tmp_path)) == model_size("tiny")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lit_unlearn.speed", *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    path = tmp_path / "benchmark.json"
    small = ["shapes=[tiny]", "objectives=[npo]", "rows=2", "lengths=[4,2,6]", "repeats=1", "warmups=0", "threads=1"]
    done = command(*small, "device=cpu", f"output={path}")
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())
    (cell,) = results["cells"]
    assert cell["parity"]["passed"]
    context = (1 + 2 + 3 + 4) + 4 * (5 + 6 + 7 + 8 + 9 + 10 + 11 + 12)
    assert cell["tokens"] == {"padded": 48, "real": 48, "unique": 36, "answer": 24, "context": context}
    assert min(cell["peak_bytes"].values()) > 0
    assert results["machine"]["threads"] == 1
    assert results["environment"]["packages"]["torch"]
    assert "tiny npo" in done.stdout


def test_a_whole_plan(tmp_path):
    path = tmp_path / "plan.json"
    done = command("plan=true", "model=llama8b", "cards=[80,141]", f"output={path}")
    assert done.returncode == 0, done.stderr
    plan = json.loads(path.read_text())["plan"]
    alone = plan["presets"]["adamw_8bit"]["ddp"]["1"]
    assert alone["card"] == 80
    assert f"{alone['total']:.1f} (80)" in done.stdout
    assert set(plan["presets"]) == set(PRESETS)
    scaling = json.loads(path.read_text())["scaling"]
    assert scaling["assumed"]["mfu"] == 0.4
    assert f"{scaling['zero3']['64']['peak_gib']:.1f}" in done.stdout


def test_a_wrong_key_ends_with_one_line():
    done = command("shape=[tiny]")
    assert done.returncode == 2
    assert "error: " in done.stderr.strip().splitlines()[-1]
    assert "shape" in done.stderr
