"""What a model says about a block of rows.

Legend: B rows of a block, T tokens of a padded row, N kept positions of a block, flat over its rows,
K top tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lit_unlearn.types.rows import Role


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says about the kept positions of one block, flat: padding and ignored rows are not there."""

    logps: Tensor
    """[N] float32, log-prob of the label that follows the position; 0 where ``mask`` is False."""
    mask: Tensor
    """[N] bool, the position predicts a labelled token; all True unless ``Ask.attended`` was asked for."""
    labels: Tensor
    """[N] int64, the token that follows; 0 where ``mask`` is False."""
    row: Tensor
    """[N] int64 in [0, B), the row a position belongs to."""
    row_weight: Tensor
    """[B] float32, share of each row in a mean."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    blank: bool = False
    """Only labels and row weights are real: the weights of a loss are wanted, not its values."""

    @property
    def answer_index(self) -> Tensor:
        """[N] int64, 0 for the first labelled token of each answer, 1 for the next; meaningless off ``mask``."""
        seen = self.mask.long().cumsum(0) - self.mask.long()  # labelled positions before this one, in all rows
        first = seen.new_full((len(self.row_weight),), len(seen)).scatter_reduce(0, self.row, seen, "amin")
        return seen - first[self.row]

    @property
    def sequence_logps(self) -> Tensor:
        """[B] log-prob of each whole answer."""
        return self.sequence_sum(self.logps)

    @property
    def num_tokens(self) -> Tensor:
        """[B] labelled tokens of each row, float32."""
        return self.sequence_sum(self.mask.float())

    def sequence_sum(self, values: Tensor, row: Tensor | None = None) -> Tensor:
        """Sum [N] values over the positions of each row -> [B]; ``row`` names the rows of other positions."""
        return values.new_zeros(len(self.row_weight)).index_add(0, self.row if row is None else row, values)

    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        """([N, k] log-probs, [N, k] token ids), most likely first; k above the vocabulary gives all of it."""
        return self._extra("topk_logps", "top_k=...")[:, :k], self._extra("topk_ids", "top_k=...")[:, :k]

    @property
    def logits(self) -> Tensor:
        return self._extra("logits", "logits=True")

    @property
    def entropy(self) -> Tensor:
        return self._extra("entropy", "entropy=True")

    def hidden(self, layer: int) -> Tensor:
        """[M, D] outputs of a decoder block at the M labelled positions themselves (not those that predict them)."""
        return self._extra(f"hidden_{layer}", f"hidden_layers=({layer},)")

    @property
    def hidden_row(self) -> Tensor:
        """[M] row of each hidden state."""
        return self._extra("hidden_row", "hidden_layers=...")

    def _extra(self, name: str, ask: str) -> Tensor:
        if name not in self.extras:
            raise ValueError(f"{name} was not computed for this role; declare Ask({ask}) in the objective's needs")
        return self.extras[name]


ScoresByRole = Mapping[Role, Scores]
