"""Which term moves the weights: the norm of each term's own gradient, and how far it points along the whole one's."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn

from lit_unlearn.parallel import all_reduce_sum, world_size
from lit_unlearn.training.module import UnlearnModule


class GradientShares(L.Callback):
    """Logs ``gradient/<term>_norm`` and ``gradient/<term>_cosine`` of every n-th step, the first one included.

    The gradients are those of the weighted terms, over all ranks, before schedules and clipping change them; the
    cosine is with their sum, so norm times cosine adds up to the norm of the sum, and a negative one works against
    the step. A term without a gradient has no cosine. The forward is the step's own and the terms are gone back
    through after its backward, so that training is the same, bit by bit, as without.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch, batch_idx) -> None:
        assert isinstance(pl_module, UnlearnModule)
        pl_module.wants_each = trainer.global_step % self.every_n_steps == 0

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        if not pl_module.loss_of_each:
            return
        weights = [weight for weight in pl_module.parameters() if weight.grad is not None]
        whole = [weight.grad for weight in weights if weight.grad is not None]
        size, numbers = nn.utils.get_total_norm(whole), {}
        for name, loss in pl_module.loss_of_each.items():
            own = _gradients(loss, weights)
            norm = nn.utils.get_total_norm(own)
            numbers[f"gradient/{name}_norm"] = norm.item()
            if norm > 0 and size > 0:
                along = torch.stack([(left * right).sum() for left, right in zip(own, whole, strict=True)]).sum()
                numbers[f"gradient/{name}_cosine"] = (along / norm / size).item()
        for logger in pl_module.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)


def _gradients(loss: Tensor, weights: list[nn.Parameter]) -> list[Tensor]:
    """Of one term, over all ranks; zeros where no weight takes part in it."""
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
    else:
        grads = [torch.zeros_like(weight) for weight in weights]
    return [all_reduce_sum(grad) / world_size() for grad in grads]
