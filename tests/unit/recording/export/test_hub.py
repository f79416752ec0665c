"""The real client against a server on this machine: what arrives is the directory, and no failure takes it away."""

from pathlib import Path

import huggingface_hub
import pytest

from lit_unlearn.errors import UserError
from lit_unlearn.recording.export.hub import check_hub, push
from tests.hub_server import Hub, serving

ID, TOKEN = "my-group/forgetful", "hf_right"


@pytest.fixture
def with_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def without_xet(with_token: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client as it is where ``hf_xet`` is not installed: large files go to the large file storage of git."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "model" / "README.md").write_text("---\ntags: [unlearning]\n---\n\n# A model\n")
    return tmp_path / "model"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def to(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)


def test_what_arrives_is_the_directory(without_xet: None, directory: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(Hub()) as hub:
        to(hub, monkeypatch)
        assert push(directory, ID, private=True) == f"{hub.address}/{ID}"
        assert hub.repositories[ID]["private"] is True
        assert hub.files(ID) == contents(directory)
        assert list(hub.objects.values()) == [contents(directory)["model.safetensors"]]
        (directory / "README.md").write_text("# Another card\n")
        push(directory, ID, private=True)  # into the one that is there
        assert hub.files(ID) == contents(directory)
        (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
        hub.files(ID)["adapter_config.json"] = b"{}"  # and what would be put on top of the new model
        push(directory, ID, private=True)
        assert hub.files(ID) == contents(directory)
        (directory / "model-00001-of-00001.safetensors").rename(directory / "model.safetensors")
        push(directory, "my-group/open", private=False)
        assert hub.repositories["my-group/open"]["private"] is False
        assert hub.unknown == []


def test_so_it_does_through_the_pipeline_of_xet(with_token: None, directory: Path, monkeypatch: pytest.MonkeyPatch):
    """But for the storage of Xet itself, whose protocol this server does not speak: it takes all files as small."""
    with serving(Hub(large=10**6)) as hub:
        to(hub, monkeypatch)
        push(directory, ID, private=True)
        assert hub.files(ID) == contents(directory)
        assert (hub.objects, hub.unknown) == ({}, [])


def test_what_the_hub_refuses_loses_nothing_and_can_be_tried_again(
    without_xet: None, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    """The pipeline of ``hf_xet`` would ask two minutes long."""
    before, told = contents(directory), rf"the run is finished and {directory} is whole, but {ID} on the Hub could not"
    again = rf"send it again by: hf upload {ID} {directory} \. --private$"
    with serving(Hub(full=True)) as hub:
        to(hub, monkeypatch)
        with pytest.raises(UserError, match=rf"{told} be filled: .*{again}") as refused:
            push(directory, ID, private=True)
        assert "storage limit" in str(refused.value)
        assert hub.files(ID) == {}
        hub.full, hub.repositories[ID]["private"] = False, False
        with pytest.raises(UserError, match=rf"{told} be checked: it is there already and public: set export\.private"):
            push(directory, ID, private=True)
        assert hub.files(ID) == {}
        monkeypatch.setenv("HF_TOKEN", "hf_wrong_and_secret")
        with pytest.raises(UserError, match=rf"{told} be made or found: .*{again}") as refused:
            push(directory, ID, private=True)
        assert "hf_wrong_and_secret" not in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
    assert contents(directory) == before


def test_what_is_known_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(UserError, match=rf"export\.push_to_hub={ID}, but HF_HUB_OFFLINE is set: unset it"):
        check_hub(ID)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match=r"there is no token of the Hub on this machine: run `hf auth login`"):
        check_hub(ID)
    (tmp_path / "token").write_text(TOKEN)
    check_hub(ID)
