"""Whole runs with each lean optimizer, with adapters, from bf16 files: they go on after an interruption and save a
plain model, which is the one that was evaluated.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_unlearn import evaluate, finetune
from lit_unlearn.errors import UserError
from lit_unlearn.models.load import load_pretrained
from lit_unlearn.models.settings import ModelConfig
from lit_unlearn.recording.checkpoints import checkpoints
from lit_unlearn.recording.export.saved_model import Export, save_model
from lit_unlearn.recording.history import read_history
from lit_unlearn.train import main
from lit_unlearn.training.module import UnlearnModule

CONF = f"conf={Path(__file__).parent / 'tiny.yaml'}"
LORA, NF4 = "model.lora={rank: 4}", "model.lora={rank: 4, base: nf4}"
IN_BACKWARD = ["optim.name=adamw_in_backward", "trainer.gradient_clip=null"]
EIGHT_BIT = ["optim.name=adamw_8bit", "trainer.precision=bf16-mixed"]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torchao compiles its step: no C++ compiler")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target model all runs begin with."""
    directory = tmp_path_factory.mktemp("models")
    finetune.main([CONF, f"output_dir={directory / 'models'}", "finetune.max_epochs=20", "logging.mode=disabled"])
    return directory / "models" / "target"


@pytest.fixture
def unlearn(start: Path, tmp_path: Path):
    def run(name: str, *options: str) -> Path:
        run_dir = tmp_path / name
        fixed = [CONF, f"output_dir={run_dir}", f"model.path={start}", "finetune=null", "logging.mode=disabled"]
        main([*fixed, "evaluation.every_n_epochs=0", *options])
        return run_dir

    return run


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_pretrained(str(path), ModelConfig())[0].state_dict()


@pytest.mark.parametrize("options", [[NF4], [LORA, *IN_BACKWARD], IN_BACKWARD], ids=["nf4", "both", "in_backward"])
def test_stopped_and_resumed_as_if_it_had_not_been(unlearn, start, options, monkeypatch: pytest.MonkeyPatch):
    straight = unlearn("straight", *options)
    step = UnlearnModule.training_step

    def failing(self: UnlearnModule, batch, batch_idx: int):
        if self.global_step == 3:
            raise RuntimeError("the power went out")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(UnlearnModule, "training_step", failing)
    with pytest.raises(RuntimeError, match="power"):
        unlearn("stopped", *options)
    monkeypatch.setattr(UnlearnModule, "training_step", step)
    stopped = unlearn("stopped", *options, "resume=true")
    for name in ("train/loss", "train/forget_loss", "squeeze/target"):
        assert read_history(stopped / "history.csv")[name] == read_history(straight / "history.csv")[name]
    assert (stopped / "metrics.json").read_bytes() == (straight / "metrics.json").read_bytes()
    before, after, again = weights(start), weights(straight / "model"), weights(stopped / "model")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert moved == ({name for name in before if "_proj" in name} if options != IN_BACKWARD else set(before))
    assert all(torch.equal(after[name], again[name]) for name in before)


def test_in_backward_is_adamw(unlearn):
    """Through the whole run: schedule, evaluation, probe and saved model."""
    plain, in_backward = unlearn("plain", "trainer.gradient_clip=null"), unlearn("in_backward", *IN_BACKWARD)
    assert (plain / "metrics.json").read_bytes() == (in_backward / "metrics.json").read_bytes()
    one, other = weights(plain / "model"), weights(in_backward / "model")
    assert all(torch.equal(one[name], other[name]) for name in one)


@needs_compiler
@pytest.mark.parametrize("options", [EIGHT_BIT, [*EIGHT_BIT, LORA]], ids=["weights", "adapters"])
def test_8bit_unlearns_and_resumes(unlearn, start, options):
    run_dir = unlearn("run", *options, "optim.lr=3e-3")
    ratio = dict(read_history(run_dir / "history.csv")["train/forget_log_ratio"])
    assert abs(ratio[0]) < 1e-3  # the reference has the policy's own bf16 weights
    assert ratio[max(ratio)] < -0.1
    assert {weight.dtype for weight in weights(run_dir / "model").values()} == {torch.float32}
    kept = torch.load(checkpoints(run_dir / "checkpoints")[0], weights_only=True)["state_dict"]
    held = {name: weight.dtype for name, weight in kept.items() if "base_layer" in name or "norm" in name}
    assert set(held.values()) == {torch.bfloat16}
    (run_dir / "metrics.json").unlink()
    unlearn("run", *options, "optim.lr=3e-3", "resume=true")
    assert (run_dir / "metrics.json").is_file()


@needs_compiler
def test_8bit_selects_retain_rows(unlearn):
    """Rows are scored outside the steps, in the steps' precision."""
    run_dir = unlearn("run", *EIGHT_BIT, "schedules={select: {name: retain_selection, keep_fraction: 0.5}}")
    assert "selection/retain_kept" in read_history(run_dir / "history.csv")


def test_what_is_missing_is_told_before_anything_is_written(unlearn, tmp_path: Path):
    with pytest.raises(UserError, match=r"optim\.name=adamw_paged pages between a GPU and its host"):
        unlearn("run", "optim.name=adamw_paged")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [[], [NF4]], ids=["whole", "nf4"])
def test_from_bf16_files_what_is_exported_is_what_was_evaluated(unlearn, start: Path, tmp_path: Path, options):
    """Also where the run died after its last step: the checkpoint holds what was trained, not what was rounded."""
    model, tokenizer = load_pretrained(str(start), ModelConfig())
    save_model(model, tokenizer, tmp_path / "bf16", Export(torch.bfloat16))
    options = [*options, f"model.path={tmp_path / 'bf16'}", "squeeze=null"]
    run_dir = unlearn("run", *options)
    numbers = json.loads((run_dir / "metrics.json").read_text())
    assert numbers["rounding"].keys() == {"dtype", "undone_share", "lost_norm", "compared_share"}
    assert numbers["rounding"]["compared_share"] == 1
    assert 0 < numbers["rounding"]["lost_norm"] < 1
    exported = load_file(run_dir / "model" / "model.safetensors")
    assert {weight.dtype for weight in exported.values()} == {torch.bfloat16}
    (run_dir / "metrics.json").unlink()
    shutil.rmtree(run_dir / "model")
    unlearn("run", *options, "resume=true")
    assert json.loads((run_dir / "metrics.json").read_text()) == numbers
    fixed = [CONF, "finetune=null", "logging.mode=disabled", f"output_dir={tmp_path / 'again'}"]
    evaluate.main([*fixed, f"model.path={run_dir / 'model'}"])
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())["evaluated"]
    assert {name: again[name] for name in again if name != "forget_quality"} == {
        name: numbers["unlearned"][name] for name in again if name != "forget_quality"
    }
