"""What a step sends between GPUs, and how long that takes beside its arithmetic: weak scaling on paper."""

from __future__ import annotations

from dataclasses import dataclass

from lit_unlearn.memory.settings import Network
from lit_unlearn.memory.size import ModelSize
from lit_unlearn.memory.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of one GPU in one step."""

    gathered: float
    """Bytes of weights that it sends on."""
    reduced: float
    """Bytes of gradients."""
    seconds: float
    """Both, one after the other."""
    compute_seconds: float

    @property
    def share(self) -> float:
        """Of communication in a step in which nothing overlaps: the most it can cost."""
        return self.seconds / (self.seconds + self.compute_seconds)

    @property
    def hidden_share(self) -> float:
        """The same where all of it runs behind the arithmetic: the least."""
        longest = max(self.seconds, self.compute_seconds)
        return (longest - self.compute_seconds) / longest


def traffic(
    size: ModelSize,
    tokens: Tokens,
    strategy: str,
    num_gpus: int,
    network: Network,
    *,
    trained: int | None = None,
    micro_batches: int = 1,
    checkpointing: bool = False,
) -> Traffic:
    """``bf16-mixed``, ``micro_batches`` forwards of ``tokens`` each on every GPU.

    A gather or a reduce-scatter of n bytes sends (N - 1) / N of them from each of N GPUs, an all-reduce is both
    (Rajbhandari et al. 2020, section 7, where ZeRO-1 and ZeRO-2 send 2 and ZeRO-3 sends 3 times the parameters).

    ``ddp``: one all-reduce of float32 gradients. ``zero1``: bf16 gradients once, bf16 weights once. ``zero2``: the
    gradients in every micro-batch. Both all-reduce their gradients, as DeepSpeed does with its buckets, where the paper
    counts a reduce-scatter. ``zero3``: weights gathered in the forward and the backward, gradients reduced, in
    every micro-batch; blocks that are computed again are gathered for that and their backward together. ``fsdp2``: the
    same with float32 gradients, and what lies outside the blocks is gathered once.
    """
    weights, ends = size.parameters, size.ends
    moved = size.parameters if trained is None else trained
    ring, many = (num_gpus - 1) / num_gpus, micro_batches
    gathered, reduced = {
        "ddp": (0, 2 * 4 * moved),
        "zero1": (2 * moved, 2 * 2 * moved),
        "zero2": (2 * moved, 2 * 2 * moved * many),
        "zero3": (2 * 2 * weights * many, 2 * moved * many),
        "fsdp2": ((2 * 2 * (weights - ends) + 2 * ends) * many, 4 * moved * many),
    }[strategy]
    flops = (8 if checkpointing else 6) * size.blocks * tokens.unique + 6 * size.vocab * size.hidden * tokens.answer
    seconds = (gathered + reduced) * ring / network.rate(num_gpus)
    return Traffic(gathered * ring, reduced * ring, seconds, many * flops / (network.tflops * 1e12 * network.mfu))
