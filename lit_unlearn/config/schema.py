"""The whole configuration of a run as typed objects; it composes what the rooms own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lit_unlearn.callbacks.settings import BeliefConfig, SqueezeConfig
from lit_unlearn.data.settings import DataConfig
from lit_unlearn.evaluation.settings import EvaluationConfig
from lit_unlearn.models.settings import ExportConfig, ModelConfig
from lit_unlearn.recording.settings import LoggingConfig
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.training.settings import OptimConfig, TrainerConfig

PUBLIC = ("authors", "tofu")
"""Benchmarks of people who never lived, whose text may go everywhere unless something else is asked for."""

Resume = Literal["auto", True, False]


@dataclass
class TermConfig:
    """One named part of the loss."""

    objective: dict[str, Any]
    """``name`` of an objective and its fields; ``package.module:Class`` loads one from outside."""
    weight: float = 1.0


@dataclass
class FinetuneConfig:
    """Make the target model (full set) and the retain model (retain set) first; null where ``model.path`` is one."""

    max_epochs: int = 5
    batch_size: int = 32
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        if min(self.max_epochs, self.batch_size) < 1:
            raise ValueError(
                f"finetune.max_epochs={self.max_epochs} and batch_size={self.batch_size} must be at least 1; "
                "finetune=null makes no models"
            )


@dataclass
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    terms: dict[str, TermConfig | None] = field(default_factory=dict)
    """Named terms of the loss; ``terms.NAME=null`` leaves one out."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    beliefs: BeliefConfig | None = None
    """Null: the defaults, where a term reads beliefs."""
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Callbacks that move weights or gradients during training: ``schedules=?`` names them, each with
    its fields."""
    squeeze: SqueezeConfig | None = None
    """Null: no squeezing probe."""
    finetune: FinetuneConfig | None = None
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    privacy: Literal["full", "local", "hashed"] | None = None
    """Where questions and answers may be written. ``full``: everywhere, W&B too. ``local``: in the run directory only.
    ``hashed``: nowhere; records hold ids and numbers, checkpoints no beliefs, and a tiny model's vocabulary is made
    from the retain rows alone. What a model knows stays in its weights, and a resumed run samples its beliefs anew.
    Null: ``full`` for the benchmarks ``authors`` and ``tofu``, ``local`` for any other."""
    output_dir: str = "???"
    """Run directory; runs/<conf name> unless set."""
    seed: int = 0
    """Of weights, order of rows, samples."""
    resume: Resume = False
    """``true``: go on in ``output_dir``, from its last checkpoint, with the models it has finetuned and the records it
    has. ``auto``: where a run was started there, else start one. Nothing happens where it is finished."""
    overwrite: bool = False
    """Replace an earlier run in ``output_dir``."""
    check: bool = False
    """Read and try out everything, one small step and a question of each probe included, print what would run and what
    memory it takes, and write nothing."""
    debug: bool = False
    """Show tracebacks of user errors."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be from 0 to {2**32 - 1}")
        if self.privacy is None:
            self.privacy = "full" if self.data.benchmark.get("name") in PUBLIC else "local"

    @property
    def keeps_text(self) -> bool:
        """Questions, answers and beliefs may be written into the run directory."""
        return self.privacy != "hashed"

    @property
    def uploads_text(self) -> bool:
        """They may leave it too, as to W&B."""
        return self.privacy == "full"
