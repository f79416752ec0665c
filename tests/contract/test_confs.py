"""The same questions to every shipped configuration."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lit_unlearn.config.files import conf_names, find_conf
from lit_unlearn.config.terms import build_terms
from lit_unlearn.errors import UserError
from lit_unlearn.memory.size import LORA_RANK, smallest_card
from lit_unlearn.memory.step import lora_parts
from lit_unlearn.memory.tokens import count_tokens
from lit_unlearn.reference.plan import plan_reference
from lit_unlearn.run.early.memory import planned
from lit_unlearn.run.prepare import build_schedules, load_benchmark
from lit_unlearn.speed.plan.named import model_size
from lit_unlearn.speed.workload.rows import step_rows
from lit_unlearn.types import Role, union_of_needs
from tests.configs import load

DIRECTORY = Path(__file__).parents[2] / "conf"
CONFS = sorted(path for path in DIRECTORY.rglob("*.yaml") if path.parent.name != "sweeps")
METHODS = (
    "grad_ascent", "grad_diff", "grad_diff_kl", "npo", "simnpo", "dpo_idk", "altpo", "po", "wga", "satimp", "tnpo",
    "wtnpo", "uwc", "bst", "bstw", "bss", "undial", "ceu", "pdu", "flat", "jensun", "rmu", "gru", "tarf",
)  # fmt: skip


def name(path: Path) -> str:
    """As ``conf=NAME`` takes it."""
    return path.relative_to(DIRECTORY).with_suffix("").as_posix()


def test_the_promised_confs_are_there():
    promised = {"own", "quickstart", "llama8b_tofu", "llama8b_tofu_bss", "llama3b_tofu", "llama1b_tofu", "smollm2_tofu"}
    promised |= {f"llama8b_tofu_{gpus}" for gpus in ("4x80", "2x80", "1x141", "1x80", "1x80_lora")}
    promised |= {"llama1b_tofu_1x24"}
    promised |= {f"methods/llama1b_{method}" for method in METHODS}
    assert {name(path) for path in CONFS} >= promised
    assert set(conf_names()) >= promised


@pytest.mark.parametrize("path", CONFS, ids=name)
def test_a_conf_builds(path: Path, tmp_path: Path):
    needed = []
    if path.stem == "own":
        (tmp_path / "rows.csv").write_text("question,answer\nWho?,Ada.\n")
        needed = [f"data.benchmark.forget={tmp_path / 'rows.csv'}"]
    config = load([f"conf={path}", *needed])
    terms = build_terms(config)
    plan_reference(union_of_needs(terms), config.model.reference)
    load_benchmark(config)
    assert len(build_schedules(config, terms)) == len(config.schedules)


@pytest.mark.parametrize("path", CONFS, ids=name)
def test_a_conf_is_found_by_its_name(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert find_conf(name(path)).samefile(path)
    monkeypatch.chdir(tmp_path)  # where there is no ./conf, the package's own
    assert find_conf(name(path)).samefile(path)
    assert name(path) in conf_names()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_conf_has_its_own_terms_only(method: str):
    path = DIRECTORY / "methods" / f"llama1b_{method}.yaml"
    assert len(path.read_text().splitlines()) <= 45
    written, config = OmegaConf.to_container(OmegaConf.load(path)), load([f"conf=methods/llama1b_{method}"])
    assert isinstance(written, dict)
    own = {term: node["objective"] for term, node in written["terms"].items() if node is not None}
    assert {term: node.objective for term, node in config.terms.items() if node is not None} == own
    assert config.output_dir == f"runs/llama1b_{method}"


PLANNED = [path for path in CONFS if " Plan: " in path.read_text()]


@pytest.mark.parametrize("path", PLANNED, ids=name)
def test_the_memory_that_a_conf_names_is_the_plans_and_fits_its_card(path: Path, monkeypatch: pytest.MonkeyPatch):
    assert len(PLANNED) == 9
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")  # for devices: auto
    config, shape = load([f"conf={path}"]), path.stem.partition("_")[0]
    size, world, micro = model_size(shape), config.trainer.world, config.data.micro_batch_size
    rows = step_rows("tofu", micro or config.data.batch_size // world, size.vocab, 0)
    tokens = count_tokens({role: rows[role] for role in (Role.forget, Role.retain)})
    full = config.model.gradient_checkpointing == "full"
    if config.model.lora is None:
        parts = planned(config, size, config.optim.name, size.parameters, tokens, micro is not None, False)
    else:
        assert config.model.lora.rank == LORA_RANK
        parts = lora_parts(size, config.optim.name, tokens, checkpointing=full)
    (told,) = re.findall(r"Plan: ([\d.]+) GiB a GPU", path.read_text())
    assert told == f"{parts.total:.1f}"
    card = int(match[1]) if (match := re.search(r"_\d+x(\d+)", path.stem)) else 80
    assert smallest_card(parts.total, [card]) == card


def test_the_working_directory_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "conf" / "methods" / "llama1b_npo.yaml"
    mine.parent.mkdir(parents=True)
    mine.touch()
    (tmp_path / "other").touch()
    assert find_conf("methods/llama1b_npo").samefile(mine)
    assert find_conf("./other") == Path("other")
    with pytest.raises(UserError, match=r"conf=methods/nothing is unknown; choose one of .*, methods/\.\.\. \(24\)"):
        find_conf("methods/nothing")
    with pytest.raises(UserError, match=r"conf=llama1b_npq is unknown; did you mean methods/llama1b_npo "):
        find_conf("llama1b_npq")


def test_a_sweep_is_no_conf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / "conf" / "sweeps" / "table1.yaml"
    sweep.parent.mkdir(parents=True)
    sweep.touch()
    assert not [found for found in conf_names() if "table1" in found]
    for written in ("sweeps/table1", "conf/sweeps/table1.yaml", str(sweep)):
        with pytest.raises(UserError, match="is a sweep, a list of runs"):
            find_conf(written)
    with pytest.raises(UserError, match="conf=table1 is unknown"):
        find_conf("table1")


@pytest.mark.parametrize("path", CONFS, ids=name)
def test_a_conf_is_one_screen_that_says_its_command(path: Path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith("# ")
    assert any(f"python -m lit_unlearn.train conf={name(path)}" in line for line in lines[:5])
