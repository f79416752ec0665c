"""The training step: one forward of the policy, the terms of the loss, exact means over ranks."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor

from lit_unlearn.errors import NonFiniteLoss
from lit_unlearn.optim import OptimConfig, adamw, schedule
from lit_unlearn.parallel import all_reduce_sum, global_mean
from lit_unlearn.reference import reference_states
from lit_unlearn.scoring import ScoringEngine
from lit_unlearn.types import Batch, Terms, union_of_needs


class UnlearnModule(L.LightningModule):
    """The trainable policy, its frozen reference where a term needs the model itself, and the named terms."""

    def __init__(
        self, engine: ScoringEngine, terms: Terms, optim: OptimConfig, reference: ScoringEngine | None = None
    ) -> None:
        super().__init__()
        self.engine = engine.train()
        self.terms, self.optim = dict(terms), optim
        self.weights = {name: term.weight for name, term in terms.items()}
        """Of the terms, as they stand now; schedules move them."""
        self.last_losses: dict[str, Tensor] = {}
        """Of the terms, unweighted and differentiable, from the forward to the end of the backward."""
        self.needs = union_of_needs(terms)
        self.reference = None if reference is None else reference.eval().requires_grad_(False)
        self.strict_loading = False  # checkpoints hold no reference: it is loaded from where the policy started

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted sum of the terms' means over the rows of all ranks."""
        reference = reference_states(batch, self.needs.reference, self.reference)
        sums = self.engine(batch, self.terms, reference)
        total = torch.zeros((), device=self.device)
        logged: dict[str, Tensor] = {}
        for name, term_sum in sums.items():
            loss, logged[f"train/{name}_loss"] = global_mean(term_sum.value, term_sum.weight)
            total = total + self.weights[name] * loss
            self.last_losses[name] = loss
            weight = all_reduce_sum(term_sum.weight).clamp(min=1e-12)
            logged |= {f"train/{name}_{key}": all_reduce_sum(stat) / weight for key, stat in term_sum.stats.items()}
        self._refuse_non_finite(logged, batch)
        logged["train/loss"] = torch.stack([self.weights[name] * logged[f"train/{name}_loss"] for name in sums]).sum()
        self.log_dict(logged, prog_bar=False, batch_size=1)
        self.log("loss", logged["train/loss"], prog_bar=True, logger=False, batch_size=1)
        return total

    def on_after_backward(self) -> None:
        self.last_losses = {}  # or their graph would outlive the step

    def configure_optimizers(self):
        optimizer = adamw(self.engine.parameters(), self.optim)
        num_steps = int(self.trainer.estimated_stepping_batches)
        per_epoch = max(1, int(self.trainer.num_training_batches))
        scheduler = schedule(optimizer, self.optim, num_steps, per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_end(self) -> None:
        """Runs before the epoch's checkpoint is written, so that a broken model never replaces a good one."""
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.engine.parameters()):
            raise NonFiniteLoss(
                f"a weight is NaN or infinite after step {self.global_step}, epoch {self.current_epoch}; a "
                "checkpoint from before is kept; try a lower optim.lr"
            )

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        weights = checkpoint["state_dict"]
        for key in [key for key in weights if key.startswith("reference.")]:
            del weights[key]

    def _refuse_non_finite(self, logged: dict[str, Tensor], batch: Batch) -> None:
        losses = {name: value for name, value in logged.items() if name.endswith("_loss")}
        finite = torch.isfinite(torch.stack(list(losses.values()))).tolist()
        bad = [name for name, good in zip(losses, finite, strict=True) if not good]
        if bad:
            name = bad[0].removeprefix("train/").removesuffix("_loss")
            rows = {role.value: block.example_id.tolist() for role, block in batch.items()}
            raise NonFiniteLoss(
                f"term '{name}' is {losses[bad[0]].item()} at step {self.global_step}, epoch {self.current_epoch}; "
                f"rows of this rank: {rows}. The weights have not moved on it and a checkpoint from before is kept; "
                "try a lower optim.lr or a bounded objective"
            )
