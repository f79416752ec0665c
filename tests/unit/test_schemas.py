"""Files of older and newer versions, wherever they are read."""

import json
from pathlib import Path

import pytest
import yaml

from lit_unlearn.config.schema import Config
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Record
from lit_unlearn.evaluation.records import are_complete, read_records, write_records
from lit_unlearn.run.resume import check_resumed, write_start
from lit_unlearn.schemas import CONFIG, RECORDS, check_schema
from tests.configs import load

NEWER = r"schema 3 was written by a newer version; this version of lit_unlearn reads 1 to 2"


def test_a_number_is_read_or_refused():
    assert (CONFIG, RECORDS) == (2, 2)
    assert [check_schema(found, 2, "it") for found in (None, 1, 2)] == [1, 1, 2]
    for found in (0, -1, "2", True, 1.0, [2]):
        with pytest.raises(UserError, match=r"^it: schema .* is no format"):
            check_schema(found, 2, "it")
    with pytest.raises(UserError, match=f"^it: {NEWER}"):
        check_schema(3, 2, "it")


def rewrite(run_dir: Path, **changes) -> Path:
    """config.yaml with other values; None leaves a key out."""
    path = run_dir / "config.yaml"
    settings = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
    return path


@pytest.fixture
def started(tmp_path: Path) -> tuple[Path, Config]:
    config = load(["conf=quickstart", f"output_dir={tmp_path}"])
    write_start(tmp_path, config)
    return tmp_path, config


def test_a_run_s_config_is_a_conf(started: tuple[Path, Config]):
    run_dir, config = started
    path = run_dir / "config.yaml"
    assert yaml.safe_load(path.read_text())["schema"] == CONFIG
    assert load([f"conf={path}"]) == config
    assert load([f"conf={rewrite(run_dir, schema=None, privacy=None)}"]) == config
    (run_dir / "above.yaml").write_text("base: config.yaml\n")
    rewrite(run_dir, schema=3, unheard_of=1)  # whose keys are not looked at
    for conf in (path, run_dir / "above.yaml"):
        with pytest.raises(UserError, match=rf"config\.yaml: {NEWER}"):
            load([f"conf={conf}"])


def test_a_run_is_resumed_by_what_it_was_started_with(started: tuple[Path, Config]):
    run_dir, config = started
    check_resumed(run_dir, config)
    local = load([f"conf={run_dir / 'config.yaml'}", "privacy=local"])
    with pytest.raises(UserError, match='privacy was "full" and is "local"'):
        check_resumed(run_dir, local)
    rewrite(run_dir, schema=None, privacy=None)  # as before there were numbers, when all was written in full
    check_resumed(run_dir, config)
    with pytest.raises(UserError, match='privacy was "full" and is "local"'):
        check_resumed(run_dir, local)
    rewrite(run_dir, schema=3)
    with pytest.raises(UserError, match=rf"config\.yaml: {NEWER}"):
        check_resumed(run_dir, config)


RECORD = {"id": 1, "choice": 0, "logps": [-1.0], "greedy": [True], "target": "a", "text": None}


@pytest.mark.parametrize("mark", [None, ""])
def test_records_of_before_are_read(tmp_path: Path, mark: str | None):
    (tmp_path / "forget-answer.jsonl").write_text(json.dumps(RECORD) + "\n")
    if mark is not None:
        (tmp_path / "complete").write_text(mark)
    assert are_complete(tmp_path) == (mark is not None)
    assert read_records(tmp_path) == {"forget/answer": [Record(1, 0, (-1.0,), (True,), "a")]}


def test_records_carry_their_number(tmp_path: Path):
    write_records(tmp_path, {"forget/answer": [Record(1, 0, (-1.0,), (True,), "a")]})
    assert json.loads((tmp_path / "complete").read_text()) == {"schema": RECORDS}
    (tmp_path / "complete").write_text(json.dumps({"schema": 3}))
    with pytest.raises(UserError, match=f"complete: {NEWER}"):
        read_records(tmp_path)
    for torn in ("{", "[]", "{}", "3"):
        (tmp_path / "complete").write_text(torn)
        with pytest.raises(UserError, match="complete: holds no schema number"):
            read_records(tmp_path)


def test_records_that_are_asked_again_are_not_complete_meanwhile(tmp_path: Path):
    records = {"forget/answer": [Record(1, 0, (-1.0,), (True,), "a")]}
    write_records(tmp_path, records)
    with pytest.raises(TypeError):
        write_records(tmp_path, records | {"retain/answer": [object()]})  # pyright: ignore[reportArgumentType]
    assert not are_complete(tmp_path)
