"""Settings of the alternates, read before torch is."""

from __future__ import annotations

from dataclasses import dataclass

from lit_unlearn.config.schema import Config


@dataclass
class AlternatesConfig(Config):
    """A run's settings, of which the model, the data and the evaluation's lengths count, and:"""

    num: int = 5
    """Alternates for each question."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num < 1:
            raise ValueError(f"num={self.num} must be at least 1")
