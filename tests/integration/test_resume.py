"""An interrupted run goes on as if nothing had happened; a diverging one stops and keeps what was good."""

import json
from pathlib import Path

import pytest
import torch

from lit_unlearn.errors import NonFiniteLoss, UserError
from lit_unlearn.recording.history import read_history
from lit_unlearn.train import main
from lit_unlearn.training.module import UnlearnModule

CONF = Path(__file__).parent / "tiny.yaml"
BSS = [
    "terms.forget={weight: 0.5, objective: {name: npo}}",
    "terms.belief={weight: 0.5, objective: {name: npo, role: belief}}",
    "beliefs={num_samples: 2, max_new_tokens: 6, every_n_epochs: 2}",
    "evaluation.every_n_epochs=0",
    "logging.mode=disabled",
    "trainer.max_epochs=4",
]


def losses(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    history = read_history(run_dir / "history.csv")
    return {name: points for name, points in history.items() if name.startswith(("train/", "squeeze/"))}


@pytest.mark.parametrize("options", [[], ["privacy=hashed", "beliefs.every_n_epochs=null"]], ids=["full", "hashed"])
def test_resumed_run_walks_the_straight_run_s_path(options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped inside epoch 3, whose beliefs were sampled at the start of epoch 2 and live in the checkpoint.

    Without text in the checkpoint, those sampled once come from the policy's start again, and so do the squeeze's
    responses.
    """
    options = [*BSS, *options]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    main([f"conf={CONF}", f"output_dir={straight}", *options])
    step = UnlearnModule.training_step

    def failing(self: UnlearnModule, batch, batch_idx: int):
        if "belief" in self.terms and self.global_step == 7 and not (stopped / "resumed").exists():
            raise RuntimeError("the power went out")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(UnlearnModule, "training_step", failing)
    with pytest.raises(RuntimeError, match="power"):
        main([f"conf={CONF}", f"output_dir={stopped}", *options])
    (stopped / "resumed").touch()
    main([f"conf={CONF}", f"output_dir={stopped}", *options, "resume=true"])

    timed = ("train/tokens_per_second", "train/step_seconds", "train/memory_gib")
    expected = {name: points for name, points in losses(straight).items() if name not in timed}
    assert {name: points for name, points in losses(stopped).items() if name not in timed} == expected
    assert (stopped / "metrics.json").read_bytes() == (straight / "metrics.json").read_bytes()


def test_resuming_a_finished_run_asks_the_final_questions_and_loses_nothing(tmp_path: Path):
    """As after an interruption of the final evaluation: there is no step left to train."""
    run_dir = tmp_path / "run"
    options = [f"conf={CONF}", f"output_dir={run_dir}", "logging.mode=disabled", "squeeze=null"]
    main(options)
    before = (run_dir / "metrics.json").read_bytes()
    (run_dir / "metrics.json").unlink()
    with pytest.raises(UserError, match="other settings in optim than"):
        main([*options, "resume=true", "optim.lr=1e-9"])
    (run_dir / "reference").rename(run_dir / "elsewhere")
    with pytest.raises(UserError, match="the policy has moved"):  # and cannot be scored as the start
        main([*options, "resume=true"])
    (run_dir / "elsewhere").rename(run_dir / "reference")
    main([*options, "resume=true"])
    assert (run_dir / "metrics.json").read_bytes() == before


def test_non_finite_loss_names_term_and_rows_and_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_dir = tmp_path / "run"
    step = UnlearnModule.training_step

    def poisoned(self: UnlearnModule, batch, batch_idx: int):
        if "retain" in self.terms and self.global_step == 3:
            with torch.no_grad():
                self.engine.model.get_input_embeddings().weight.fill_(float("inf"))  # type: ignore[operator]
        return step(self, batch, batch_idx)

    monkeypatch.setattr(UnlearnModule, "training_step", poisoned)
    options = ["logging.mode=disabled", "squeeze=null", "evaluation.every_n_epochs=0"]
    with pytest.raises(NonFiniteLoss, match=r"'forget' is nan at step 3, epoch 1; rows of this rank: .*'forget': \["):
        main([f"conf={CONF}", f"output_dir={run_dir}", *options])
    kept = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(torch.isfinite(weight).all() for weight in kept["state_dict"].values())
    assert not (run_dir / "metrics.json").exists()


def test_a_run_is_not_overwritten_silently(tmp_path: Path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.json").write_text(json.dumps({"precious": 1}))
    with pytest.raises(UserError, match="not empty; choose another output_dir"):
        main([f"conf={CONF}", f"output_dir={run_dir}"])
    assert json.loads((run_dir / "metrics.json").read_text()) == {"precious": 1}
