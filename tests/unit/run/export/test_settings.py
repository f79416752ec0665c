"""What a card tells of the settings: what was changed; no secret, no place, and in private neither names nor words."""

from pathlib import Path

import pytest
import yaml

from lit_unlearn.config.schema import Config
from lit_unlearn.run.export.settings import NOT_TOLD, benchmark_name, hub_id, told_settings
from tests.configs import load

CONF = f"conf={Path(__file__).parents[3] / 'integration' / 'tiny.yaml'}"


def own_rows(tmp_path: Path, *options: str) -> Config:
    """A run on files of one's own, whose names tell whom they are about."""
    (tmp_path / "jane_doe.jsonl").write_text('{"question": "Who is Jane?", "answer": "A patient."}\n')
    benchmark = f"{{name: files, forget: {tmp_path / 'jane_doe.jsonl'}, max_probe: 7}}"
    (tmp_path / "jane").mkdir(exist_ok=True)
    changed = ["finetune=null", "terms.retain=null", "optim.lr=3e-5", f"data.benchmark={benchmark}"]
    changed += [f"model.path={tmp_path / 'jane'}", f"evaluation.retain_model={tmp_path / 'jane'}"]
    changed += [f"output_dir={tmp_path / 'jane_run'}", "model.lora={rank: 3}", "logging.tags=[jane]"]
    return load([CONF, *changed, "data.prompt.system_prompt='You know Jane Doe.'", *options])


@pytest.mark.parametrize("privacy", ["local", "hashed"])
def test_in_private_no_name_and_no_words_are_told(tmp_path: Path, privacy: str):
    config = own_rows(tmp_path, f"privacy={privacy}")
    told = told_settings(config)
    text = yaml.safe_dump(told)
    assert "jane" not in text.lower()
    assert str(tmp_path) not in text
    assert told["data"]["benchmark"] == {"name": "files", "max_probe": 7}
    assert told["model"]["path"] == told["data"]["prompt"]["system_prompt"] == NOT_TOLD
    assert (told["optim"]["lr"], told["model"]["lora"]["rank"]) == (3e-5, 3)
    assert told["terms"]["forget"]["objective"] == {"name": "npo"}
    assert benchmark_name(config) == "files"


def test_in_public_places_are_told_by_their_last_name(tmp_path: Path):
    config = own_rows(tmp_path, "privacy=full", "model.reference_cache=/somewhere/else")
    told = told_settings(config)
    assert told["data"]["benchmark"]["forget"] == "jane_doe.jsonl"
    assert told["data"]["prompt"]["system_prompt"] == "You know Jane Doe."
    assert told["model"]["path"] == told["evaluation"]["retain_model"] == "jane"
    text = yaml.safe_dump(told)
    assert str(tmp_path) not in text
    for left_out in ("jane_run", "output_dir", "logging", "somewhere", "accelerator"):
        assert left_out not in text


def test_no_secret_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    config = own_rows(tmp_path, "privacy=full", "data.prompt.template_options={note: hf_abcdefghij, api_key: sesame}")
    text = yaml.safe_dump(told_settings(config))
    assert "hf_abcdefghij" not in text
    assert "sesame" not in text


def test_ids_of_the_hub_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
    assert hub_id("gpt2") == "gpt2"
    (tmp_path / "gpt2").mkdir()
    for local in ("gpt2", "/models/llama", "./llama", "runs/npo/model", None):
        assert hub_id(local) is None
    for privacy in ("full", "local"):
        config = own_rows(tmp_path, f"privacy={privacy}", "model.path=meta-llama/Llama-3.1-8B")
        assert told_settings(config)["model"]["path"] == "meta-llama/Llama-3.1-8B"
