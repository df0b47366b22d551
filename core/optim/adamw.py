"""AdamW with decoupled weight decay (arXiv:1711.05101), state and arithmetic in fp32 whatever the parameters' type."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import mint

from core import ops


def update(p, lr, factor, correction1, correction2, *, beta1, beta2, eps, weight_decay):
    """One parameter's step: ``p`` holds value, gradient, m, v of one shape -> ``(value, m, v)``, the same shapes.

    ``factor`` scales the gradient (clipping, accumulation); ``correction`` are 1 - beta^t.
    """
    gradient = p["gradient"].astype(ms.float32) * factor
    value = p["value"].astype(ms.float32)
    m = beta1 * p["m"] + (1.0 - beta1) * gradient
    v = beta2 * p["v"] + (1.0 - beta2) * gradient * gradient
    value = value * (1.0 - lr * weight_decay)
    value = value - lr * (m / correction1) / (mint.sqrt(v / correction2) + eps)
    return value.astype(p["value"].dtype), m, v


class AdamW:
    """AdamW over named parameters.

    Args:
        parameters: trainable parameters.
        betas, eps, weight_decay: as in torch's AdamW; parameters of one dimension (norms, biases) are decayed too, as
            there.
    """

    def __init__(
        self, parameters: Sequence[ms.Parameter], *, betas: tuple[float, float], eps: float, weight_decay: float
    ):
        self.parameters = list(parameters)
        self.hyper = {"beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": weight_decay}
        self.step_count = 0
        self.m = [mint.zeros(q.shape, dtype=ms.float32) for q in self.parameters]
        self.v = [mint.zeros(q.shape, dtype=ms.float32) for q in self.parameters]
        self._update = ops.compiled(update)

    def step(self, gradients: Sequence[ms.Tensor], lr: float, factor: ms.Tensor) -> None:
        """Updates every parameter in place; gradients in the parameters' order, multiplied by the scalar ``factor``."""
        self.step_count += 1
        scalars = (
            ms.Tensor(lr, ms.float32),
            factor,
            ms.Tensor(1.0 - self.hyper["beta1"] ** self.step_count, ms.float32),
            ms.Tensor(1.0 - self.hyper["beta2"] ** self.step_count, ms.float32),
        )
        for index, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            held = {
                "value": parameter.view(parameter.shape),
                "gradient": gradient,
                "m": self.m[index],
                "v": self.v[index],
            }
            value, self.m[index], self.v[index] = self._update(held, *scalars, **self.hyper)
            parameter.set_data(value)

    def state_bytes(self) -> int:
        """Bytes held in optimiser state."""
        return sum(t.size * t.itemsize for t in (*self.m, *self.v))
