"""The Lightning trainer: precision, devices, checkpoints, loggers."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy as FabricDDPStrategy
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from lit_unlearn.errors import Preempted, UserError
from lit_unlearn.recording.checkpoints import DurableFiles, last_checkpoint
from lit_unlearn.recording.wandb.run import close_wandb
from lit_unlearn.strategies.build import build_strategy, chosen
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.training.checkpoints import Checkpoints
from lit_unlearn.training.loops import Epochs, Steps
from lit_unlearn.training.settings import TrainerConfig
from lit_unlearn.training.signals import remember


class _NoSignals(_SignalConnector):
    """``signals.heeding`` hears them. Lightning's handler meets other ranks within itself, whatever they are doing."""

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False


def prepare_device(config: TrainerConfig) -> None:
    """Check what was asked for, before anything is read, and set this process's threads.

    Raises:
        UserError: CUDA was asked for and is not there, or has fewer devices.
    """
    if config.accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=cuda, but torch finds no CUDA device; set trainer.accelerator=cpu or auto")
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    if on_gpu and config.devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={config.devices}, but this machine has {torch.cuda.device_count()} GPUs")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which Lightning imports, looks and complains
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)


def build_trainer(
    config: TrainerConfig,
    strategy: StrategyConfig,
    run_dir: Path,
    callbacks: Sequence[L.Callback],
    loggers: Sequence[Logger],
    learns_partly: bool = False,
) -> L.Trainer:
    """One optimizer batch is one batch of the loader, so nothing accumulates and Lightning's sampler stays out.

    ``learns_partly``: as of ``build_strategy``.
    """
    checkpoints = Checkpoints(run_dir / "checkpoints", config)
    zero = chosen(strategy, config.world).startswith("zero")
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=build_strategy(strategy, config.world, config.precision, _backend(config), learns_partly),
        precision=None if zero else config.precision,  # ZeRO's strategy brings its own
        max_epochs=config.max_epochs,
        max_steps=config.max_steps,
        gradient_clip_val=config.gradient_clip,
        log_every_n_steps=config.log_every_n_steps,
        callbacks=[*callbacks, checkpoints],
        plugins=[DurableFiles(), *_in_slurm()],
        logger=list(loggers),
        default_root_dir=run_dir,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit_loop = Epochs(trainer, max_epochs=config.max_epochs)
    trainer.fit_loop.epoch_loop = Steps(trainer, config.max_steps, checkpoints)
    trainer._signal_connector = _NoSignals(trainer)
    if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
        remember(launcher)
    return trainer


def fit(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, run_dir: Path) -> None:
    """Train from the newest whole checkpoint in ``run_dir``, or from the start.

    Raises:
        Preempted: a signal has ended it.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last_checkpoint(run_dir), weights_only=True)
    except Preempted:
        close_wandb(trainer.loggers)  # else its last steps may not have reached the disk
        raise


def build_rehearsal(config: TrainerConfig, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """One batch on this process's device, in the run's precision; nothing is logged and nothing written."""
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return L.Trainer(
        accelerator=config.accelerator,
        devices=[local % torch.cuda.device_count()] if on_gpu else 1,
        precision=config.precision,
        max_epochs=1,
        limit_train_batches=1,
        log_every_n_steps=1,
        gradient_clip_val=config.gradient_clip,
        callbacks=list(callbacks),
        plugins=[LightningEnvironment()],  # the other processes of a job are not asked
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def has_begun_together() -> bool:
    """Whether srun or torchrun has started all processes; else the first one starts the others when it trains."""
    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def release() -> None:
    """Free what a phase that is over has left: trainer, module and optimizer refer to each other in circles.

    Whoever calls it has let go of them.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def build_fabric(config: TrainerConfig) -> Fabric:
    """Processes and devices without a training loop, for evaluation."""
    strategy = "auto" if config.world == 1 else FabricDDPStrategy(process_group_backend=_backend(config))
    return Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy,
        precision=config.precision,
    )


def _in_slurm() -> list[SLURMEnvironment]:
    """Where Lightning would take SLURM's: the same, but it does not requeue the job itself, for which it would write
    checkpoints in the middle of a step."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():  # in this order, as Lightning asks
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def _backend(config: TrainerConfig) -> str:
    return "nccl" if config.accelerator != "cpu" and torch.cuda.is_available() else "gloo"
