"""The random states of torch, numpy and Python come back, each rank's own, in types that load without code."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_unlearn.training import checkpoints
from lit_unlearn.training.checkpoints import Checkpoints
from lit_unlearn.training.settings import TrainerConfig


class Module:
    device = torch.device("cpu")


def drawn() -> tuple[float, ...]:
    normal = (torch.randn(()).item(), float(np.random.standard_normal()), random.gauss(0, 1))
    return (*normal, torch.rand(()).item(), float(np.random.random()), random.random())


def test_states_come_back_after_a_trip_over_the_disk():
    random.gauss(0, 1)  # leaves half a pair, which is state too
    np.random.standard_normal()
    saved = io.BytesIO()
    torch.save(Checkpoints(Path(), TrainerConfig()).state_dict(), saved)
    expected = drawn()
    assert drawn() != expected
    callback = Checkpoints(Path(), TrainerConfig())
    callback.load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=True))
    assert drawn() != expected  # they wait for the training, before which much is drawn
    callback.on_train_start(None, Module())  # type: ignore[arg-type]
    assert drawn() == expected
    callback.on_train_start(None, Module())  # type: ignore[arg-type]
    assert drawn() != expected  # once


def test_each_rank_takes_its_own(monkeypatch: pytest.MonkeyPatch):
    states, expected = {}, {}
    for rank in (0, 1):
        monkeypatch.setattr(checkpoints, "rank", lambda rank=rank: rank)
        torch.manual_seed(rank)
        states |= Checkpoints(Path(), TrainerConfig()).state_dict()["random"]
        expected[rank] = drawn()
    for rank in (1, 0):
        monkeypatch.setattr(checkpoints, "rank", lambda rank=rank: rank)
        callback = Checkpoints(Path(), TrainerConfig())
        callback.load_state_dict({"random": states})
        callback.on_train_start(None, Module())  # type: ignore[arg-type]
        assert drawn() == expected[rank]
