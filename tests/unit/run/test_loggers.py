"""What a run is called on W&B and by which tags it is found, for confs as users write them."""

from pathlib import Path

import pytest

from lit_unlearn.recording.wandb.run import Identity
from lit_unlearn.run.loggers import identity
from tests.configs import load

TINY = f"conf={Path(__file__).parents[2] / 'integration' / 'tiny.yaml'}"
BELIEF = "terms.belief={objective: {name: npo, role: belief}}"


def test_a_run_stands_in_the_group_of_its_finetunings(tmp_path):
    config = load([TINY, f"output_dir={tmp_path / 'mine'}", "logging.project=study", "logging.tags=[seed-1, tiny]"])
    assert identity(config, "unlearn") == Identity(
        "study", "mine", "mine", "unlearn", ("npo+nll", "tiny", "authors", "seed-1")
    )
    assert identity(config, "finetune_target") == Identity(
        "study", "mine", "mine-finetune_target", "finetune_target", ("tiny", "authors", "seed-1")
    )
    config.logging.group = "sweep"
    assert {identity(config, job).group for job in ("unlearn", "finetune_retain")} == {"sweep"}


@pytest.mark.parametrize(
    ("arguments", "tags"),
    [
        ([TINY, BELIEF], ("npo+nll", "bss", "tiny", "authors")),
        ([TINY, "schedules.anneal.k=0.1"], ("npo+nll", "anneal", "tiny", "authors")),
        (["conf=llama8b_tofu", "model.path=models/mine/"], ("bst+nll", "mine", "tofu-forget10")),
        (
            ["conf=methods/llama1b_gru", "model.path=org/A-1B"],
            ("grad_ascent+nll", "gradient_rectification", "A-1B", "tofu-forget10"),
        ),
    ],
)
def test_tags_are_method_model_and_benchmark(arguments, tags):
    assert identity(load([*arguments, "output_dir=run"]), "unlearn").tags == tags


def test_long_names_are_cut_to_what_wandb_takes():
    config = load([TINY, "output_dir=run", "model.name=hub", f"model.path=org/{'x' * 90}", "finetune=null"])
    assert identity(config, "unlearn").tags == ("npo+nll", "x" * 64, "authors")
