import re
from dataclasses import replace
from pathlib import Path

import pytest

from lit_unlearn.command.arguments import parse
from lit_unlearn.config.files import conf_directories
from lit_unlearn.errors import UserError
from lit_unlearn.sweep.checks import check_points
from lit_unlearn.sweep.read import begin, listed_sweeps, read
from tests.configs import load
from tests.unit.sweep.conftest import LINES, TINY

SWEEPS = Path(__file__).parents[3] / "conf" / "sweeps"


def test_points_are_products_with_the_seed_slowest(sweep):
    points = sweep("list", "trainer.max_epochs=3").points
    assert [point.number for point in points] == [0, 1, 2, 3]
    configs = [point.config() for point in points]
    assert [(config.seed, config.optim.lr) for config in configs] == [(0, 1e-3), (0, 2e-3), (1, 1e-3), (1, 2e-3)]
    assert {(config.trainer.max_epochs, config.evaluation.every_n_epochs) for config in configs} == {(3, 0)}
    assert {config.logging.group for config in configs} == {"rates"}


def test_listed_points_meet_the_grid_and_may_name_a_conf(sweep):
    lines = LINES + f"points: [{{conf: quickstart, squeeze: null}}, {{conf: {TINY}, data: {{batch_size: 2}}}}]"
    points = sweep(lines=lines).points
    assert [Path(point.conf).stem for point in points] == ["quickstart"] * 2 + ["tiny"] * 2 + ["quickstart"] * 2 + [
        "tiny"
    ] * 2
    assert [point.config().data.batch_size for point in points[:4]] == [16, 16, 2, 2]


def test_arguments_lead_to_the_config_they_stand_for(sweep):
    """Through the command line of the run, where every value is YAML once more."""
    lines = (
        LINES + "points: [{terms.forget.objective: {name: bst, mix: 1.0e-05}, optim.trainable: 'a: b', squeeze: null}]"
    )
    point = sweep(lines=lines).points[0]
    assert replace(load(point.arguments()), output_dir="") == replace(point.config(), output_dir="")


def test_what_was_started_is_gone_on_with(sweep):
    begun = begin(sweep("run", "trainer.max_epochs=3"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", begun.config.day or "")
    again = read(parse(["status", "runs/sweeps/rates"], words=True))
    assert again.points == begun.points
    assert again.config.day == begun.config.day
    longer = sweep("run", "trainer.max_epochs=3", lines=LINES.replace("[0, 1]", "[0, 1, 2]"))
    assert len(longer.points) == 6
    for changed in (["seeds=[1, 0]"], [], ["trainer.max_epochs=4"]):
        with pytest.raises(UserError, match="holds a sweep whose point 0 was another"):
            sweep("run", *changed)
    with pytest.raises(UserError, match="whose point 2 was another"):
        sweep("run", "trainer.max_epochs=3", "seeds=[0]")
    with pytest.raises(UserError, match="is settled"):
        read(parse(["run", "runs/sweeps/rates", "seeds=[3]"], words=True))


def test_a_task_of_an_array_takes_its_point(sweep, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert sweep("run").config.point == 2
    assert sweep("list").config.point is None
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    with pytest.raises(UserError, match="points are 0 to 3"):
        sweep("run")


def test_one_day_for_all_unless_the_conf_names_one(sweep):
    points = sweep(lines=LINES + "points: [{seed: 0}, {data.prompt.date: '2020-02-02'}]").points
    assert [point.on("2021-01-01").config().data.prompt.date for point in points[::2][:2]] == [
        "2021-01-01",
        "2020-02-02",
    ]


def test_one_cut_for_all_seeds_unless_the_conf_names_one(sweep):
    keeping = "points: [{evaluation: {every_n_epochs: 1, keep_best: {metric: agg}}}, {evaluation.selection.share: 0.3}"
    rates = sweep(
        lines=LINES.replace("[0, 1]", "[5, 6]").replace("1.0e-3, ", "")
        + f"{keeping}, {{evaluation.selection.seed: 3}}, {{squeeze: null}}]"
    )
    cuts = [rates.aligned(point).config().evaluation.selection for point in rates.points]
    assert [cut and cut.seed for cut in cuts] == [5, 5, 3, None] * 2


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_sweep_is_found_and_builds(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)  # where there is no ./conf, the package's own
    found = read(parse(["list", path.stem], words=True))
    assert found.name == path.stem
    assert path.stem in listed_sweeps()
    assert len(found.points) > 3
    check_points(found)
    assert any((directory / "sweeps" / path.name).is_file() for directory in conf_directories())


def test_there_are_three_sweeps():
    assert len(list(SWEEPS.glob("*.yaml"))) >= 3
