"""The training step: the terms of the loss on one batch, what they log, and the faults that stop a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_unlearn.engine.body import evaluating
from lit_unlearn.engine.scoring import ScoringEngine, Step
from lit_unlearn.errors import NonFiniteLoss, UserError
from lit_unlearn.models.adapters.lora import adapters_off, has_adapters
from lit_unlearn.parallel import all_reduce_sum
from lit_unlearn.reference.plan import reference_states
from lit_unlearn.reference.store import ReferenceStore
from lit_unlearn.strategies.streamed import cut
from lit_unlearn.strategies.whole import accumulate, open_root, own_part, whole
from lit_unlearn.strategies.zero.strategy import ZeroStrategy
from lit_unlearn.training.batches import micro_batches
from lit_unlearn.training.optim import adamw, freeze_above, schedule
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import Batch, Terms, union_of_needs


class UnlearnModule(L.LightningModule):
    """The trainable policy, its frozen reference where a term needs the model itself, and the named terms."""

    def __init__(
        self,
        engine: ScoringEngine,
        terms: Terms,
        optim: OptimConfig,
        reference: ScoringEngine | None = None,
        micro_batch_size: int | None = None,
    ) -> None:
        """``micro_batch_size``: rows of each role in one forward of this rank; None: all."""
        super().__init__()
        self.micro_batch_size = micro_batch_size
        self.engine = engine.train()
        self.terms, self.optim = dict(terms), optim
        self.weights = {name: term.weight for name, term in terms.items()}
        """Of the terms, as they stand now; schedules move them."""
        self.apart: frozenset[str] = frozenset()
        """Terms whose gradient somebody wants apart from the others'."""
        self.loss_apart: Tensor | None = None
        """Their weighted sum, differentiable, from the forward to the end of the backward."""
        self.wants_each = False
        """Whether somebody wants the gradient of every term by itself in this step, after the backward."""
        self.loss_of_each: Mapping[str, Tensor] = {}
        """The weighted terms, differentiable, from the forward to the end of the backward; empty unless wanted."""
        self.needs = union_of_needs(terms)
        asks = self.needs.policy.values()
        self.stops_early = not any(ask.logps for ask in asks)
        """Whether no term reads log-probs, so that the forward ends with the last block that is read."""
        if self.stops_early:
            freeze_above(engine.model, max(layer for ask in asks for layer in ask.hidden_layers))
        if not any(weight.requires_grad for weight in engine.parameters()):
            raise UserError("no weight that the terms read is trainable: set optim.trainable to others, or to null")
        self.reference = None if reference is None else reference.eval().requires_grad_(False)
        self.store: ReferenceStore | None = None
        """What is known of the start beforehand, from the start of the fit on."""
        self.grad_norm: Tensor | float | None = None
        """Of this step, before clipping; None where the weights moved inside the backward."""
        self.strict_loading = False  # checkpoints hold no reference: it is loaded from where the policy started

    @property
    def learns_partly(self) -> bool:
        """Whether some trainable weights may get no gradient in a step.

        A norm above the last block that is read where no term reads log-probs, towers that no text passes, and experts
        that no token is sent to.
        """
        model = self.engine.model
        names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        towers = model.config.get_text_config() is not model.config
        return self.stops_early or towers or any("expert" in name for name in names)

    def configure_model(self) -> None:
        """Where weights lie in pieces the engine is a root that is cut, and so is the reference."""
        for engine in [self.engine] + ([self.reference] if self.reference is not None else []):
            cut(self.trainer.strategy, engine)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Whole weights and the run's precision, for whatever looks at a model between the steps; on every rank."""
        models = [self.engine] + ([self.reference] if self.reference is not None else [])
        with self.trainer.precision_plugin.forward_context(), whole(self.trainer.strategy, models):
            yield

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        self.zero_grad()  # Lightning would keep them through evaluations and the next step's forward

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted sum of the terms' means over the rows of all ranks."""
        parts = micro_batches(batch, self.micro_batch_size)
        overall = None
        if len(parts) > 1:
            overall = all_reduce_sum(torch.stack([self.engine.weigh(part, self.terms) for part in parts]).sum(0))
        steps: list[Step] = []
        for part in parts:
            if steps:  # only the last is Lightning's to go back through
                accumulate(self.trainer.strategy, steps[-1].loss)
            steps.append(self._score(part, overall))
        step = steps[-1]
        losses = {name: sum(part.losses[name] for part in steps) for name in step.losses}
        stats = {name: sum(part.stats[name] for part in steps) for name in step.stats}
        self._refuse_non_finite(losses, batch)
        self.loss_apart, self.loss_of_each = step.apart, step.each
        total = sum(self.weights[name] * value for name, value in losses.items())
        logged = {f"train/{name}_loss": value for name, value in losses.items()}
        logged |= {f"train/{name}": value for name, value in stats.items()} | {"train/loss": total}
        self.log_dict(logged, prog_bar=False, batch_size=1)
        self.log("loss", total, prog_bar=True, logger=False, batch_size=1)
        return step.loss

    def _score(self, batch: Batch, overall: Tensor | None) -> Step:
        own = self.engine if has_adapters(self.engine.model) else None
        with open_root(self.trainer.strategy, self.reference or own):
            with self.start() as start:
                reference = reference_states(batch, self.needs.reference, start, self.store)
            return self.engine(batch, self.terms, reference, self.weights, self.apart, self.wants_each, overall)

    def optimizer_zero_grad(self, *args: object) -> None:
        """Lightning calls it before the last backward, when the gradients of the micro-batches before are there."""

    @contextmanager
    def start(self) -> Iterator[ScoringEngine | None]:
        """The frozen start: the second model, the policy without its adapters, or None where neither is."""
        if self.reference is not None or not has_adapters(self.engine.model):
            yield self.reference
            return
        with adapters_off(self.engine.model), evaluating(self.engine):
            yield self.engine

    def backward(self, loss: Tensor, *args: object, **kwargs: object) -> None:
        loss.backward(retain_graph=bool(self.loss_of_each))

    def on_after_backward(self) -> None:
        self.loss_apart, self.loss_of_each = None, {}  # or their graph would outlive the step

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm, as Lightning would, and log what the norm was: of what schedules have made of the gradients.

        Where the weights move inside the backward no gradient is left, so no norm is known.
        """
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"], batch_size=1)
        if isinstance(self.trainer.strategy, ZeroStrategy):  # clips in its step, though offloaded gradients lie here
            return
        weights = [w for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
        if not weights:
            return
        if gradient_clip_val is None:
            norm = nn.utils.get_total_norm([weight.grad for weight in weights])
        else:
            norm = nn.utils.clip_grad_norm_(weights, gradient_clip_val)
        self.grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Raises NonFiniteLoss, once the step is queued: asking before would let a GPU wait."""
        step, self.grad_norm = self.global_step, None
        super().optimizer_step(*args, **kwargs)
        if isinstance(self.trainer.strategy, ZeroStrategy):
            self.grad_norm = self.trainer.strategy.grad_norm
        if self.grad_norm is None:
            return
        self.log("train/grad_norm", self.grad_norm, batch_size=1)
        if not math.isfinite(self.grad_norm):
            raise NonFiniteLoss(
                f"the gradient is NaN or infinite at step {step}, epoch {self.current_epoch}, though the loss is "
                "finite; a checkpoint from before is kept; try a lower optim.lr or a bounded objective"
            )

    def configure_optimizers(self):
        optimizer = adamw(self.engine.parameters(), self.optim)
        num_steps = int(self.trainer.estimated_stepping_batches)
        per_epoch = max(1, int(self.trainer.num_training_batches))
        scheduler = schedule(optimizer, self.optim, num_steps, per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_end(self) -> None:
        self._refuse_broken_weights()

    def _refuse_broken_weights(self) -> None:
        broken = sum(int(not torch.isfinite(own_part(weight)).all()) for weight in self.engine.parameters())
        if all_reduce_sum(torch.tensor(broken, device=self.device)):
            raise NonFiniteLoss(
                f"a weight is NaN or infinite after step {self.global_step}, epoch {self.current_epoch}; a "
                "checkpoint from before is kept; try a lower optim.lr"
            )

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        self._refuse_broken_weights()  # or they would replace good ones
        weights = checkpoint["state_dict"]
        for key in [key for key in weights if key.startswith("reference.")]:
            del weights[key]

    def _refuse_non_finite(self, losses: Mapping[str, float], batch: Batch) -> None:
        for name, loss in losses.items():
            if math.isfinite(loss):
                continue
            rows = {role.value: block.example_id.tolist() for role, block in batch.items()}
            raise NonFiniteLoss(
                f"term '{name}' is {loss} at step {self.global_step}, epoch {self.current_epoch}; "
                f"rows of this rank: {rows}. The weights have not moved on it and a checkpoint from before is kept; "
                "try a lower optim.lr or a bounded objective"
            )
