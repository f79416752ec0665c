"""What may change when a run is resumed, and what may not; what is written at each start."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from lit_unlearn.config.schema import Config
from lit_unlearn.errors import UserError
from lit_unlearn.recording.environment import HIDDEN
from lit_unlearn.run.resume import FREE, check_inputs, check_ranks, check_resumed, settled, write_start
from lit_unlearn.types import Role
from tests.configs import load

CONF = f"conf={Path(__file__).parents[2] / 'integration' / 'tiny.yaml'}"


def started(run_dir: Path, *options: str) -> Config:
    run_dir.mkdir(exist_ok=True)
    config = load([CONF, f"output_dir={run_dir}", *options])
    write_start(run_dir, config, {"rows": "a", "probes": "b", "model": "c"})
    return config


def resumed(run_dir: Path, *options: str) -> Config:
    return load([CONF, f"output_dir={run_dir}", "resume=true", *options])


DECISIVE = {
    "evaluation.max_new_tokens=12": "evaluation.max_new_tokens was 24 and is 12",
    "evaluation.batch_size=16": "evaluation.batch_size was 32 and is 16",
    "evaluation.metrics={extraction_strength: {floor: one_over_length}}": "evaluation.metrics",
    "schedules.anneal={k: 0.5}": "schedules",
    "trainer.precision=bf16-mixed": 'trainer.precision was "32-true" and is "bf16-mixed"',
    "trainer.max_epochs=3": "trainer.max_epochs was 2 and is 3",
    "trainer.max_steps=3": "trainer.max_steps was -1 and is 3",
    "trainer.num_threads=2": "trainer.num_threads",
    "trainer.gradient_clip=null": "trainer.gradient_clip was 1.0 and is null",
    "data.batch_size=3": "data.batch_size",
    "data.benchmark.num_general=3": "data.benchmark.num_general",
    "model.lora={rank: 2}": "model.lora",
    "optim.betas=[0.8,0.999]": "optim.betas",
    "squeeze=null": "squeeze",
    "finetune.max_epochs=1": "finetune.max_epochs was 60 and is 1",
    "terms.retain.weight=2": "terms.retain.weight was 1.0 and is 2.0",
    "seed=1": "seed was 0 and is 1",
}


@pytest.mark.parametrize("option", DECISIVE)
def test_what_decides_a_step_or_a_record_may_not_change(tmp_path: Path, option: str):
    started(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match="other settings than output_dir") as told:
        check_resumed(tmp_path / "run", resumed(tmp_path / "run", option))
    assert DECISIVE[option] in str(told.value)
    assert "\n" not in str(told.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_retain_model_may_not_change(tmp_path: Path):
    own = ["finetune=null", "evaluation.retain_model=models/a"]
    started(tmp_path / "run", *own)
    with pytest.raises(UserError, match=r'evaluation\.retain_model was "models/a" and is "models/b"'):
        check_resumed(tmp_path / "run", resumed(tmp_path / "run", *own, "evaluation.retain_model=models/b"))


def test_what_decides_nothing_may_change(tmp_path: Path):
    started(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    options = ["logging.mode=disabled", "debug=true", "trainer.keep_checkpoints=5", "trainer.log_every_n_steps=2"]
    check_resumed(tmp_path / "moved", resumed(tmp_path / "moved", *options, "trainer.checkpoint_every_n_steps=2"))


@pytest.mark.parametrize("name", ["auto", "ddp", "fsdp2"])
def test_other_ranks_may_go_on(tmp_path: Path, name: str):
    started(tmp_path / "run", f"strategy.name={name}", "trainer.devices=2")
    check_resumed(tmp_path / "run", resumed(tmp_path / "run", f"strategy.name={name}"))


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_other_ranks_have_no_files_of_zero(tmp_path: Path, name: str):
    run_dir, own = tmp_path / "run", f"strategy.name={name}"
    started(run_dir, own, "trainer.devices=2")
    check_resumed(run_dir, resumed(run_dir, own, "trainer.num_nodes=2"))
    with pytest.raises(
        UserError, match=rf"{name} keeps a file of each rank.* with 2, not 4: set trainer\.devices=2 and"
    ):
        check_resumed(run_dir, resumed(run_dir, own, "trainer.devices=2", "trainer.num_nodes=2"))


def test_an_epoch_keeps_its_number_of_steps(tmp_path: Path):
    """Five rows in batches of four: a last batch of one feeds one rank alone."""

    def study(*options: str) -> Any:
        config = resumed(tmp_path / "run", "finetune=null", *options)
        return SimpleNamespace(config=config, rows={Role.forget: range(5)})

    started(tmp_path / "run")
    check_ranks(tmp_path / "run", study())
    with pytest.raises(UserError, match=r"with 2 an epoch would have .* 1 rows, enough for 1 ranks and not for 2"):
        check_ranks(tmp_path / "run", study("trainer.devices=2"))


def test_auto_goes_on_where_a_run_was_started(tmp_path: Path):
    config = load([CONF, f"output_dir={tmp_path / 'run'}", "resume=auto"])
    assert settled(config).resume is False
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "environment.json").touch()  # killed before the second mark
    assert settled(config).resume is False
    (tmp_path / "run" / "environment.json").unlink()
    started(tmp_path / "run")
    assert settled(config).resume is True
    assert settled(load([CONF, f"output_dir={tmp_path / 'run'}"])).resume is False


def test_every_field_is_compared_unless_it_is_listed(tmp_path: Path):
    """So a field that is new tomorrow is compared from its first day."""
    config = started(tmp_path / "run")
    seen = 0
    for section in fields(config):
        value = getattr(config, section.name)
        if section.name in FREE or section.name in ("terms", "schedules"):
            continue
        for field in fields(value) if is_dataclass(value) else ():
            if f"{section.name}.{field.name}" in FREE:
                continue
            changed = copy.copy(value)
            object.__setattr__(changed, field.name, "another")
            with pytest.raises(UserError, match=rf"{section.name}\.{field.name}[ .]"):
                check_resumed(tmp_path / "run", _with(config, section.name, changed))
            seen += 1
    assert seen > 40


def _with(config: Config, section: str, value: object) -> Config:
    changed = copy.copy(config)
    setattr(changed, section, value)
    return changed


def test_a_field_that_is_newer_than_the_run_has_its_default(tmp_path: Path):
    started(tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    stored = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(stored, dict)
    del stored["trainer"]["keep_checkpoints"], stored["optim"]["eps"]
    path.write_text(OmegaConf.to_yaml(stored))
    check_resumed(tmp_path / "run", resumed(tmp_path / "run"))
    with pytest.raises(UserError, match=r"optim\.eps was 1e-08 and is 0\.001"):
        check_resumed(tmp_path / "run", resumed(tmp_path / "run", "optim.eps=1e-3"))


def test_the_first_start_stays_and_later_ones_are_added(tmp_path: Path):
    started(tmp_path / "run")
    config, environment = (tmp_path / "run" / name for name in ("config.yaml", "environment.json"))
    before, first = config.read_bytes(), json.loads(environment.read_text())["starts"]
    write_start(tmp_path / "run", resumed(tmp_path / "run", "debug=true"))
    assert config.read_bytes() == before
    starts = json.loads(environment.read_text())["starts"]
    assert starts[:1] == first
    assert len(starts) == 2
    environment.write_text(json.dumps({"command": ["train"]}))  # of an earlier version
    write_start(tmp_path / "run", resumed(tmp_path / "run"))
    starts = json.loads(environment.read_text())["starts"]
    assert starts[0] == {"command": ["train"]}
    assert len(starts) == 2


def test_a_file_behind_a_setting_that_changed_is_told(tmp_path: Path):
    started(tmp_path / "run")
    check_inputs(tmp_path / "run", {"rows": "a", "probes": "b", "model": "c"})
    with pytest.raises(UserError, match="the probes are not those that"):
        check_inputs(tmp_path / "run", {"rows": "a", "probes": "x", "model": "c"})


def test_a_secret_is_neither_written_nor_compared(tmp_path: Path):
    secret = ["data.benchmark.files={api_key: s3cret}"]
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    config = load([CONF, f"output_dir={run_dir}"])
    config.data.benchmark = config.data.benchmark | {"files": [{"api_key": secret[0]}]}
    write_start(run_dir, config)
    assert "s3cret" not in (run_dir / "config.yaml").read_text()
    assert HIDDEN in (run_dir / "config.yaml").read_text()
    config.data.benchmark = config.data.benchmark | {"files": [{"api_key": "rotated"}]}
    check_resumed(run_dir, config)
