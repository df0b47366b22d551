"""Parameters, gradients and runs that the tests of the optimisers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore.graph import api

from core.optim import foreach
from core.optim.adamw import AdamW
from core.optim.base import Optimizer
from core.optim.came import CAME

SHAPES = [(6, 10), (9,), (2, 3, 4), (6, 10), (1, 5), (9,)]


def adamw(parameters: Sequence[ms.Parameter], **changes: Any) -> AdamW:
    """With usual settings."""
    return AdamW(parameters, **({"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1} | changes))


def came(parameters: Sequence[ms.Parameter], **changes: Any) -> CAME:
    """With usual settings."""
    settings = {"betas": (0.9, 0.99, 0.999), "eps": (1e-30, 1e-16), "weight_decay": 0.1}
    return CAME(parameters, **(settings | changes))


BOTH = [adamw, came]


def arrays(seed: int, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[np.ndarray]:
    """Standard normal float32."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def parameters(values: Sequence[np.ndarray], dtype: ms.Type = ms.float32) -> list[ms.Parameter]:
    """Parameters w0, w1, ..."""
    return [ms.Parameter(ms.Tensor(value).astype(dtype), name=f"w{i}") for i, value in enumerate(values)]


def run(optimizer: Optimizer, steps: range, lr: float = 1e-2, dtype: ms.Type = ms.float32) -> None:
    """Steps with gradients that depend on the step alone."""
    shapes = [tuple(q.shape) for q in optimizer.parameters]
    for step in steps:
        optimizer.step([ms.Tensor(g).astype(dtype) for g in arrays(1000 + step, shapes)], lr, 0.5)


def everything(optimizer: Optimizer) -> dict[str, np.ndarray]:
    """Parameters and state."""
    return {str(q.name): q.asnumpy().copy() for q in optimizer.parameters} | optimizer.state()


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Equal names, types and bytes."""
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and one[n].tobytes() == other[n].tobytes() for n in one
    )


def graphs_built(action: Callable[[], object]) -> int:
    """How many graphs MindSpore compiles during ``action``."""
    foreach._compiled.cache_clear()  # other tests' graphs are not ours
    before = len(api.ms_compile_cache)
    action()
    return len(api.ms_compile_cache) - before
