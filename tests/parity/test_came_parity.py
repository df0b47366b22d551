"""CAME against came-pytorch over twenty steps: parameters and every state, factored and not."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from core import ops
from core.optim.came import CAME
from tests.parity.cases_came import SETTINGS, STEPS, gradients, reference_run, start
from tests.tolerances import OPERATOR, relative_error


def _ours(seed: int, settings: dict) -> dict[str, np.ndarray]:
    given = dict(settings)
    lr = given.pop("lr")
    parameters = [ms.Parameter(ms.Tensor(value), name=f"w{i}") for i, value in enumerate(start(seed))]
    optimizer = CAME(parameters, **given)
    for step in range(STEPS):
        optimizer.step([ms.Tensor(g) for g in gradients(seed, step)], lr)
    state = {name: value for name, value in optimizer.state().items() if name != "step"}
    return state | {f"value.w{i}": parameter.asnumpy() for i, parameter in enumerate(parameters)}


@pytest.mark.parametrize("mode", ["pynative", "graph"])
@pytest.mark.parametrize("seed", range(len(SETTINGS)))
def test_parameters_and_every_state_after_twenty_steps(seed, mode):
    ops.configure(mode=mode)
    ours, reference = _ours(seed, SETTINGS[seed]), reference_run(seed, SETTINGS[seed])
    assert ours.keys() == reference.keys()
    assert max(relative_error(ours[name], reference[name]) for name in ours) <= OPERATOR


CHANGES = [
    {"betas": (0.9, 0.999, 0.9998)},
    {"betas": (0.9, 0.9991, 0.9999)},
    {"betas": (0.9001, 0.999, 0.9999)},
    {"eps": (1e-9, 1e-16)},
    {"eps": (1e-30, 1e-5)},
    {"clip_threshold": 1.01},
    {"weight_decay": 0.101},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_slightly_different_optimiser_is_seen(change):
    ours, reference = _ours(0, SETTINGS[0] | change), reference_run(0, SETTINGS[0])
    assert max(relative_error(ours[name], reference[name]) for name in ours) > 10 * OPERATOR
