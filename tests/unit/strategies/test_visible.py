"""How many processes ``trainer.devices=auto`` stands for."""

import pytest

from lit_unlearn.strategies.visible import visible_gpus
from lit_unlearn.training.settings import TrainerConfig

LAUNCHERS = ("LOCAL_WORLD_SIZE", "SLURM_STEP_ID", "SLURM_NTASKS_PER_NODE", "CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("accelerator", "environment", "number"),
    [
        ("cuda", {"CUDA_VISIBLE_DEVICES": "2,5,7"}, 3),
        ("auto", {"CUDA_VISIBLE_DEVICES": "GPU-0a,GPU-1b"}, 2),
        ("auto", {"CUDA_VISIBLE_DEVICES": ""}, 1),
        ("auto", {"CUDA_VISIBLE_DEVICES": "-1"}, 1),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "0,1"}, 1),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "0", "LOCAL_WORLD_SIZE": "4"}, 4),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS_PER_NODE": "8"}, 8),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_NTASKS_PER_NODE": "8"}, 2),
    ],
)
def test_auto_is_what_a_launcher_started_or_what_is_visible(accelerator, environment, number, monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = TrainerConfig(devices="auto", accelerator=accelerator, num_nodes=2)
    assert (config.devices, config.world) == (number, 2 * number)


def test_without_names_the_driver_s_files_count(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert all(name.isdecimal() for name in visible_gpus())
