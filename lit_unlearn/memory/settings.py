"""What the plan of many GPUs assumes, read before torch is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """Assumed, not measured; the defaults are of a machine with eight H100 and a 400 Gbit/s card for each."""

    node_gpus: int = 8
    """GPUs of one machine."""
    link_gbs: float = 300.0
    """GB/s that a GPU sends inside a machine."""
    node_link_gbs: float = 40.0
    """GB/s a GPU between machines; all of a machine together, since what enters it once is handed on inside."""
    tflops: float = 989.0
    """Dense bf16 TFLOP/s that a GPU is said to have."""
    mfu: float = 0.4
    """Share of them that the arithmetic of a step, recomputation included, is assumed to reach."""

    def __post_init__(self) -> None:
        if self.node_gpus < 1 or min(self.link_gbs, self.node_link_gbs, self.tflops) <= 0 or not 0 < self.mfu <= 1:
            raise ValueError(
                f"network.node_gpus={self.node_gpus} must be at least 1, link_gbs={self.link_gbs}, "
                f"node_link_gbs={self.node_link_gbs} and tflops={self.tflops} above 0, mfu={self.mfu} in (0, 1]"
            )

    def rate(self, num_gpus: int) -> float:
        """Bytes a second of a ring over all GPUs: its slowest link."""
        between = self.node_link_gbs * self.node_gpus
        return 1e9 * (self.link_gbs if num_gpus <= self.node_gpus else min(self.link_gbs, between))
