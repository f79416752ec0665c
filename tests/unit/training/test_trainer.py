"""The trainer under a cluster's environment."""

from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.training.settings import TrainerConfig
from lit_unlearn.training.trainer import build_trainer


@pytest.mark.parametrize("in_slurm", [True, False])
def test_slurm_requeues_no_job_through_a_checkpoint_of_its_own(
    in_slurm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Lightning's would be of the middle of a step; ours are of its end."""
    task = {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in task.items() if in_slurm else ():
        monkeypatch.setenv(f"SLURM_{name}", value)
    trainer = build_trainer(TrainerConfig(accelerator="cpu"), StrategyConfig(), tmp_path, [], [])
    environment = trainer._accelerator_connector.cluster_environment
    assert type(environment) is (SLURMEnvironment if in_slurm else LightningEnvironment)
    if isinstance(environment, SLURMEnvironment):
        assert not environment.auto_requeue
