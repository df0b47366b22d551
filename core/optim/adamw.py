"""AdamW with decoupled weight decay (arXiv:1711.05101), state and arithmetic in fp32 whatever the parameters' type."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms

from core import ops
from core.optim.base import Optimizer, decayed, zeros


def update(p, factor, lr, correction1, correction2, *, beta1, beta2, rest1, rest2, eps, weight_decay):
    """One parameter's step: ``p`` holds value, gradient, m, v of one shape -> ``(value, m, v)``, the same shapes.

    ``factor`` scales the gradient; ``rest`` are 1 - beta, ``correction`` 1 - beta^t, both from Python's doubles.
    """
    return ops.adamw(p, factor, lr, correction1, correction2, beta1, beta2, rest1, rest2, eps, weight_decay)


class AdamW(Optimizer):
    """AdamW over named parameters, as torch's.

    Args:
        parameters: trainable parameters.
        betas, eps, weight_decay: as in torch.
        decay: which parameters decay (``core.optim.groups.decay_mask``); None is all, as in torch.
    """

    def __init__(
        self,
        parameters: Sequence[ms.Parameter],
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decay: Sequence[bool] | None = None,
    ):
        self.betas = beta1, beta2 = betas
        hyper = {"beta1": beta1, "beta2": beta2, "rest1": 1.0 - beta1, "rest2": 1.0 - beta2, "eps": eps}
        statics = [{**hyper, "weight_decay": value} for value in decayed(parameters, decay, weight_decay)]
        states = [{"m": zeros(q.shape), "v": zeros(q.shape)} for q in parameters]
        super().__init__(parameters, states, update, statics, in_place=ops.adamw_in_place)

    def scalars(self, lr: float) -> tuple[ms.Tensor, ...]:
        """Learning rate and the corrections of the averages' start at zero."""
        corrections = [ms.Tensor(1.0 - beta**self.step_count, ms.float32) for beta in self.betas]
        return (ms.Tensor(lr, ms.float32), *corrections)
