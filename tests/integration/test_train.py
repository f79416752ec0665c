"""The whole path as a user runs it: a real process, real files, read back."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_unlearn.evaluation.metrics import METRICS
from lit_unlearn.evaluation.records import read_records
from lit_unlearn.evaluation.report import ROWS, cell, report
from lit_unlearn.recording.history import read_history
from lit_unlearn.schemas import METRICS as METRICS_SCHEMA
from tests.wandb_reader import read_runs

CONF = Path(__file__).parent / "tiny.yaml"
PHASES = (
    *("finetune the target model", "finetune the retain model", "draw squeeze responses", "ask the retain model"),
    *("ask the original model", "store the reference", "unlearn", "ask the unlearned model", "save"),
)
PROGRESS = re.compile(rf" +[\d:]+  (\d)/(\d)  ({'|'.join(PHASES)})   (?:done in [\d:]+| *\d+%)(?:   .*)?$")
"""A line of the display: number of the phase, of how many, its title."""
KEYS = {
    "forget_probability", "forget_rougeL_recall", "forget_truth_ratio", "forget_extraction_strength",
    "forget_exact_memorization", "forget_quality", "retain_extraction_strength", "model_utility",
    "mem", "utility", "agg",
}  # fmt: skip
AGGREGATES = ("agg", "mem", "utility", "model_utility")


def command(*arguments: str, entry: str = "train") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"lit_unlearn.{entry}", f"conf={CONF}", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    run_dir = tmp_path_factory.mktemp("train") / "run"
    result = command(f"output_dir={run_dir}", "logging.gradient_shares_every_n_steps=2", "logging.tags=[mine]")
    assert result.returncode == 0, result.stderr[-2000:]
    return run_dir, result


@pytest.fixture(scope="module")
def finished(printed: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return printed[0]


def test_every_line_printed_is_ours(printed: tuple[Path, subprocess.CompletedProcess[str]]):
    run_dir, result = printed
    told, shown = result.stderr.splitlines(), result.stdout.splitlines()
    assert len(told) + len(shown) < 60
    assert [line for line in told if not PROGRESS.match(line)] == []
    ended = [match.groups() for line in told if (match := PROGRESS.match(line)) and " done in " in line]
    assert ended == [(str(number), "9", title) for number, title in enumerate(PHASES, 1)]
    table, _, paths = result.stdout.partition("\n\nwritten:\n")
    numbers = re.compile(r" {34}original  unlearned  retain_model$|[a-zA-Z_]+ +[v^](  +(\d\.\d{3}|\d\.\de-\d\d|-)){3}$")
    notes = re.compile(r"$|\^ higher is better, |(mem|utility|agg) = ")
    assert [line for line in table.splitlines() if not numbers.match(line) and not notes.match(line)] == []
    offline = next((run_dir / "wandb").glob("offline-run-*"))
    names = ["metrics.json", "history.csv", "plots", "records", "model"]
    assert paths.splitlines() == [*(f"  {run_dir / name}" for name in names), f"  wandb sync {offline}"]


def test_every_promised_file_is_there(finished: Path):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.yaml", "environment.json", "metrics.json", "records", "history.csv", "plots", "model", "checkpoints",
        "wandb", "finetune",
    }  # fmt: skip
    assert {path.name for path in (finished / "plots").iterdir()} == {
        "forget_retain.png", "squeeze.png", "trade_off.png"
    }  # fmt: skip
    assert not list(finished.rglob("*.tmp"))


def test_the_card_says_what_the_files_say(finished: Path):
    card = (finished / "model" / "README.md").read_text(encoding="utf-8")
    _, front, text = card.split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["library_name"] == "transformers"
    assert told["tags"] == ["unlearning", "lit_unlearn", "npo", "nll"]
    assert "base_model" not in told  # of no hub
    numbers = json.loads((finished / "metrics.json").read_text())
    columns = ("original", "unlearned", "retain_model")
    for row in ("forget_probability", "model_utility", "forget_quality"):
        cells = " | ".join("-" if (value := numbers[name][row]) is None else cell(value) for name in columns)
        assert f"| {row} | {ROWS[row]} | {cells} |" in text
    settings = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert settings["terms"]["forget"]["objective"] == {"name": "npo"}
    assert settings["data"]["benchmark"]["num_authors"] == 6
    commit = json.loads((finished / "environment.json").read_text())["starts"][0]["git"]["commit"]
    assert f"lit_unlearn at commit {commit}" in text
    assert str(finished.parent) not in card
    assert "/" not in re.sub(r"forget/|retain/|real_authors/|world_facts/|holdout/", "", text.partition("## Limits")[0])


def test_metrics_json_is_the_stable_interface(finished: Path):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics.pop("schema") == METRICS_SCHEMA
    assert set(metrics) == {"original", "unlearned", "retain_model"}
    for numbers in metrics.values():
        assert numbers.keys() >= KEYS
    assert metrics["unlearned"]["forget_probability"] < metrics["original"]["forget_probability"]
    assert metrics["original"]["forget_extraction_strength"] > 0.3  # else most of the numbers below compare nothing
    assert metrics["original"]["utility"] > 0.1


def test_every_number_can_be_computed_from_the_records_again(finished: Path):
    metrics = json.loads((finished / "metrics.json").read_text())
    del metrics["schema"]
    retain_model = read_records(finished / "records" / "retain_model")
    for name, numbers in metrics.items():
        records = read_records(finished / "records" / name)
        again = report(records, {metric: kind() for metric, kind in METRICS.items()}, retain_model)
        assert {key: again[key] for key in numbers} == pytest.approx(numbers, nan_ok=True)


def test_the_model_loads_with_transformers(finished: Path):
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert {path.suffix for path in (finished / "model").iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}
    assert str(next(model.parameters()).dtype) == "torch.float32"
    assert tokenizer.chat_template is not None


def test_history_has_losses_beliefs_evaluations_and_the_squeeze(finished: Path):
    history = read_history(finished / "history.csv")
    expected = (
        "train/loss", "train/forget_loss", "train/forget_logp", "train/retain_logp", "train/tokens_per_second",
        "train/memory_gib", "train/learning_rate", "train/grad_norm", "eval/mem", "eval_forget/quality",
        "eval_utility/retain_probability", "gradient/forget_norm", "gradient/retain_cosine", "squeeze/target",
        "squeeze/high", "squeeze/index", "squeeze/retain_high", "squeeze/retain_index",
    )  # fmt: skip
    for name in expected:
        assert name in history, name
    assert [step for step, _ in history["train/loss"]] == [0, 1, 2, 3]
    assert [step for step, _ in history["eval/mem"]] == [0, 2, 4]


def test_wandb_holds_the_finetunings_and_the_unlearning_in_one_group(finished: Path):
    folders = [finished / "finetune" / "target_run", finished / "finetune" / "retain_run", finished]
    runs = [run for folder in folders for run in read_runs(folder)]
    assert [(run.name, run.job_type, run.tags) for run in runs] == [
        ("run-finetune_target", "finetune_target", ["tiny", "authors", "mine"]),
        ("run-finetune_retain", "finetune_retain", ["tiny", "authors", "mine"]),
        ("run", "unlearn", ["npo+nll", "tiny", "authors", "mine"]),
    ]
    assert {(run.project, run.group) for run in runs} == {("lit_unlearn", "run")}
    assert len({run.id for run in runs}) == 3
    for run, folder in zip(runs, folders, strict=True):
        seen: dict[str, dict[int, float]] = {}
        for row in run.history:
            for key in row.keys() & read_history(folder / "history.csv").keys():
                seen.setdefault(key, {})[row["trainer/global_step"]] = row[key]
        assert {key: sorted(points.items()) for key, points in seen.items()} == read_history(folder / "history.csv")
        assert {"train/loss", "train/learning_rate", "train/grad_norm"} <= seen.keys()


def test_wandb_page_folds_and_shows_every_evaluation(finished: Path):
    (run,) = read_runs(finished)
    logged = {key for row in run.history for key in row}
    sections = {"eval", *(f"eval_{name}" for name in ("forget", "retain", "real_authors", "world_facts", "holdout"))}
    sections |= {"eval_utility", "train", "squeeze", "gradient", "plots", "answers", "trainer"}
    assert {key.split("/")[0] for key in logged if "/" in key} == sections
    assert {key for key in logged if key.startswith("eval/")} == {f"eval/{n}" for n in AGGREGATES}
    for shown in ("plots/forget_retain", "plots/squeeze", "plots/trade_off", "answers/forget"):
        assert [row["trainer/global_step"] for row in run.history if f"{shown}/path" in row] == [0, 2, 4]
    assert any(key.startswith("squeeze/curves") for key in logged)
    metrics = json.loads((finished / "metrics.json").read_text())
    for number, key, direction in (
        ("agg", "eval/agg", max), ("forget_probability", "eval_forget/probability", min)
    ):  # fmt: skip
        values = [value for _, value in read_history(finished / "history.csv")[key]]
        assert run.summary[key] == {direction.__name__: direction(values), "last": metrics["unlearned"][number]}


@pytest.mark.slow
def test_same_seed_same_numbers_and_two_processes_too(finished: Path, tmp_path: Path):
    again, two = tmp_path / "again", tmp_path / "two"
    for run_dir, devices in ((again, 1), (two, 2)):
        result = command(f"output_dir={run_dir}", f"trainer.devices={devices}", "squeeze=null", "logging.mode=disabled")
        assert result.returncode == 0, result.stderr[-2000:]
        ours = [PROGRESS.match(line) for line in result.stderr.splitlines()]
        assert all(ours), result.stderr
        assert len({match[1] for match in ours if match}) == 8  # no squeeze probe
        assert sum(" done in " in match[0] for match in ours if match) == 8  # a second process shows nothing
    assert (again / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()
    one, other = (json.loads((run_dir / "metrics.json").read_text()) for run_dir in (again, two))
    for name in ("original", "unlearned", "retain_model"):
        assert other[name] == pytest.approx(one[name], abs=1e-3, nan_ok=True)


@pytest.mark.slow
def test_evaluate_and_finetune_agree_with_train(finished: Path, tmp_path: Path):
    models = tmp_path / "models"
    assert command(f"output_dir={models}", entry="finetune").returncode == 0
    result = command(
        f"output_dir={tmp_path / 'evaluation'}",
        f"model.path={models / 'target'}",
        f"evaluation.retain_model={models / 'retain'}",
        entry="evaluate",
    )
    assert result.returncode == 0, result.stderr[-2000:]
    evaluated = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["evaluated"]
    original = json.loads((finished / "metrics.json").read_text())["original"]
    assert evaluated == pytest.approx(original, nan_ok=True)
