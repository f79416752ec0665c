"""The same questions to every benchmark in the table."""

import csv
import json
from pathlib import Path

import pytest

from lit_unlearn.benchmarks import BENCHMARKS
from lit_unlearn.benchmarks.authors import Authors
from lit_unlearn.benchmarks.base import Benchmark, Example
from lit_unlearn.benchmarks.file_rows import Columns
from lit_unlearn.benchmarks.files import Files
from lit_unlearn.benchmarks.tofu import Tofu
from lit_unlearn.types import Role


def small_tofu(root: Path) -> Tofu:
    """Four fictitious authors' worth of files in the Hub's layout."""
    source = Authors(num_authors=4, num_forget_authors=1, num_holdout_authors=1, questions_per_author=2, num_general=4)
    probes = {probe.name: probe.examples for probe in source.probes()}
    splits = {"forget01": "forget", "retain99": "retain", "holdout01": "holdout"}
    perturbed = {"forget01_perturbed": "forget", "retain_perturbed": "retain"}
    perturbed |= {f"{name}_perturbed": name for name in ("real_authors", "world_facts")}
    for split, name in (splits | perturbed).items():
        lines = []
        for row in probes[f"{name}/answer"]:
            wrong = [e.response for e in probes.get(f"{name}/perturbed", ()) if e.id == row.id]
            record = {"question": row.prompt, "answer": row.response, "perturbed_answer": wrong}
            lines.append(json.dumps(record | {"paraphrased_answer": f"In other words: {row.response}"}) + "\n")
        (root / f"{split}.json").write_text("".join(lines))
    return Tofu("forget01", root=str(root))


def own_files(root: Path) -> Files:
    """A CSV, JSON lines and a list, in columns of other names."""
    probes = {probe.name: probe.examples for probe in Authors(num_authors=4, num_forget_authors=1).probes()}
    rows = {name: [{"q": r.prompt, "a": r.response} for r in probes[f"{name}/answer"]] for name in ("forget", "retain")}
    with (root / "forget.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "q"), *((row["a"], row["q"]) for row in rows["forget"])])
    (root / "retain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows["retain"]))
    (root / "holdout.json").write_text(json.dumps([{"q": "Who else?", "a": "Nobody."}]))
    forget, retain, holdout = (str(root / name) for name in ("forget.csv", "retain.jsonl", "holdout.json"))
    return Files(forget, retain, holdout, Columns("q", "a"))


@pytest.fixture(params=sorted(BENCHMARKS))
def benchmark(request: pytest.FixtureRequest, tmp_path: Path) -> Benchmark:
    """A new benchmark is asked with its default fields, unless it has none or needs files."""
    made = {"tofu": small_tofu, "files": own_files}
    return made[request.param](tmp_path) if request.param in made else BENCHMARKS[request.param]()


def texts(rows) -> set[tuple[str, str]]:
    return {(row.prompt, row.response) for row in rows}


def test_the_table_is_not_empty() -> None:
    assert BENCHMARKS
    assert {"authors", "tofu"} <= set(BENCHMARKS)


def test_probe_names_are_unique_and_well_formed(benchmark: Benchmark) -> None:
    names = [probe.name for probe in benchmark.probes()]
    assert names
    assert len(set(names)) == len(names)
    assert all(name.count("/") == 1 and all(name.split("/")) for name in names)
    assert any(probe.generate for probe in benchmark.probes())


def test_ids_are_unique_and_texts_are_not_empty(benchmark: Benchmark) -> None:
    groups: list[list[Example]] = [list(probe.examples) for probe in benchmark.probes()]
    groups += [list(benchmark.train_split(role)) for role in (Role.forget, Role.retain)]
    groups += [list(benchmark.finetune_split(kind)) for kind in ("target", "retain")]
    for rows in groups:
        assert rows
        assert len({(row.id, row.choice) for row in rows}) == len(rows)
        assert all(row.prompt.strip() and row.response.strip() and row.id >= 0 for row in rows)


def test_kinds_of_answers_meet_by_id(benchmark: Benchmark) -> None:
    """Truth ratio compares the answers of one question: same ids and prompts, as many choices for each."""
    probes = {probe.name: probe.examples for probe in benchmark.probes()}
    for name, rows in probes.items():
        answers = probes[f"{name.split('/')[0]}/answer"]
        assert {(row.id, row.prompt) for row in rows} == {(row.id, row.prompt) for row in answers}
        num_choices = 1 + max(row.choice for row in rows)
        assert len(rows) == num_choices * len(answers)
        if name.endswith("/perturbed"):
            assert num_choices > 1
            assert not texts(rows) & texts(answers)


def test_forget_and_retain_are_disjoint(benchmark: Benchmark) -> None:
    forget, retain = (texts(benchmark.train_split(role)) for role in (Role.forget, Role.retain))
    assert not forget & retain
    assert texts(benchmark.finetune_split("target")) == forget | retain
    assert texts(benchmark.finetune_split("retain")) == retain


def test_the_forget_probe_asks_the_forget_rows(benchmark: Benchmark) -> None:
    probes = {probe.name: probe.examples for probe in benchmark.probes()}
    assert list(probes["forget/answer"]) == list(benchmark.train_split(Role.forget))
    assert texts(probes["retain/answer"]) <= texts(benchmark.train_split(Role.retain))
    assert not texts(probes["holdout/answer"]) & texts(benchmark.finetune_split("target"))


def test_metrics_are_named_once(benchmark: Benchmark) -> None:
    assert benchmark.metrics
    assert len(set(benchmark.metrics)) == len(benchmark.metrics)


def test_benchmarks_are_frozen_configs(benchmark: Benchmark) -> None:
    assert hash(benchmark) == hash(benchmark)
    assert type(benchmark).__doc__
