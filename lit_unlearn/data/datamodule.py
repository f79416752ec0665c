"""Whole optimizer batches: forget and retain rows; beliefs, alternates and known reference log-probs attached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from lit_unlearn.data.alternates import Pairing
from lit_unlearn.data.beliefs import BeliefStore
from lit_unlearn.data.sampler import RowIds, StepSampler
from lit_unlearn.data.tokenize import Encoded, pad
from lit_unlearn.types import Role, Rows


class UnlearnData(L.LightningDataModule):
    """One batch of the loader is one optimizer step; the order is ours, not Lightning's shuffling sampler's."""

    def __init__(
        self,
        rows: Mapping[Role, Sequence[Encoded]],
        batch_size: int,
        seed: int,
        store: BeliefStore | None = None,
        pairing: Pairing | None = None,
    ) -> None:
        """``rows``: tokenized splits by role; the forget rows, where there are any, set the length of an epoch.

        ``pairing``: of the alternate rows, which are not sampled but go with the forget rows of the step.
        """
        super().__init__()
        self.rows = {role: list(split) for role, split in rows.items()}
        self.batch_size, self.seed, self.store, self.pairing = batch_size, seed, store, pairing
        self.sampler: StepSampler | None = None

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        self.sampler = StepSampler(
            {role: len(split) for role, split in self.rows.items() if role != Role.alternate},
            Role.forget if Role.forget in self.rows else next(iter(self.rows)),
            self.batch_size,
            self.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        # Its own generator: else each epoch's iterator draws from the global one, which dropout draws from too, and a
        # resumed run makes an iterator less.
        return _Loader(
            _Steps(self.rows),
            batch_size=None,
            sampler=self.sampler,  # type: ignore[arg-type]
            collate_fn=_as_is,  # type: ignore[arg-type]
            generator=torch.Generator(),
        )

    def on_before_batch_transfer(self, batch: dict[Role, list[Encoded]], dataloader_idx: int) -> dict[Role, Rows]:
        """Pad here, in the main process, where the belief store and the reference's log-probs are never stale."""
        assert self.trainer is not None
        blocks = {role: pad(rows) for role, rows in batch.items()}
        if self.store is not None:
            blocks[Role.belief] = pad(self.store.draw(batch[Role.forget], self.trainer.global_step))
        if self.pairing is not None:
            epoch, alternates = self.trainer.current_epoch, self.rows[Role.alternate]
            blocks[Role.alternate] = pad(self.pairing.choose(batch[Role.forget], alternates, epoch))
        return blocks

    def know_reference(self, role: Role, logps: Mapping[int, Sequence[float]]) -> None:
        """Attach the reference's log-prob of each answer token to the rows of a role, by example id."""
        self.rows[role][:] = [replace(row, reference_logps=tuple(logps[row.id])) for row in self.rows[role]]


class _Loader(DataLoader):
    """Goes on in the middle of an epoch: Lightning keeps the state of such a loader in its checkpoints."""

    sampler: StepSampler

    def state_dict(self) -> dict[str, int]:
        return {"step": self.sampler.next}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.sampler.first = state_dict["step"] % len(self.sampler)  # of an epoch that has none left, the next is whole


class _Steps(Dataset):
    def __init__(self, rows: Mapping[Role, Sequence[Encoded]]) -> None:
        self.rows = rows

    def __getitem__(self, ids: RowIds) -> dict[Role, list[Encoded]]:
        return {role: [self.rows[role][index] for index in chosen] for role, chosen in ids.items()}


def _as_is(batch: dict[Role, list[Encoded]]) -> dict[Role, list[Encoded]]:
    return batch
