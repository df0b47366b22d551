"""CAME by came-pytorch: twenty steps of every kind of shape."""

from __future__ import annotations

import json

import came_pytorch
import numpy as np
import torch

STEPS = 20
SHAPES = [(12, 20), (20, 12), (3, 5, 7), (4, 2, 3, 3, 3), (33,), (1, 17), (17, 1), (1,)]
FIELDS = {
    "m": "exp_avg", "v": "exp_avg_sq", "v_row": "exp_avg_sq_row", "v_column": "exp_avg_sq_col",
    "residual_row": "exp_avg_res_row", "residual_column": "exp_avg_res_col",
}  # fmt: skip
# The published defaults; the original's training command; no decay, no confidence in old values, a low bound.
SETTINGS = [
    {"betas": (0.9, 0.999, 0.9999), "eps": (1e-30, 1e-16), "weight_decay": 0.1, "clip_threshold": 1.0, "lr": 1e-2},
    {"betas": (0.9, 0.95, 0.99), "eps": (1e-8, 1e-8), "weight_decay": 1e-4, "clip_threshold": 1.0, "lr": 1e-4},
    {"betas": (0.5, 0.5, 0.5), "eps": (1e-12, 1e-12), "weight_decay": 0.0, "clip_threshold": 0.3, "lr": 0.1},
]


def start(seed: int) -> list[np.ndarray]:
    """Start values."""
    rng = np.random.default_rng([seed, 0])
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def gradients(seed: int, step: int) -> list[np.ndarray]:
    """Gradients whose size varies by five orders of magnitude from step to step, with a row of zeros."""
    rng = np.random.default_rng([seed, 1, step])
    drawn = [(rng.standard_normal(shape) * 10 ** rng.uniform(-4, 1)).astype(np.float32) for shape in SHAPES]
    drawn[0][3] = 0.0
    return drawn


def reference_run(seed: int, settings: dict) -> dict[str, np.ndarray]:
    """``value.w<i>`` and ``<field>.w<i>`` after all steps."""
    parameters = [torch.nn.Parameter(torch.from_numpy(value)) for value in start(seed)]
    optimizer = came_pytorch.CAME(parameters, **settings)
    for step in range(STEPS):
        for parameter, gradient in zip(parameters, gradients(seed, step), strict=True):
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    result = {}
    for i, parameter in enumerate(parameters):
        result[f"value.w{i}"] = parameter.detach().numpy()
        state = optimizer.state[parameter]
        result |= {f"{ours}.w{i}": state[name].numpy() for ours, name in FIELDS.items() if name in state}
    return result


def cases() -> dict[str, dict[str, np.ndarray]]:
    """Name -> ``config`` (JSON), ``start.<i>``, ``gradient.<i>`` ``[steps, ..]``, ``output.<field>.w<i>``."""
    result = {}
    for seed, settings in enumerate(SETTINGS):
        case = {"config": np.array(json.dumps(settings))}
        case |= {f"start.{i}": value for i, value in enumerate(start(seed))}
        steps = [gradients(seed, step) for step in range(STEPS)]
        case |= {f"gradient.{i}": np.stack([g[i] for g in steps]) for i in range(len(SHAPES))}
        case |= {f"output.{name}": value for name, value in reference_run(seed, settings).items()}
        result[f"came betas {settings['betas']}"] = case
    return result
