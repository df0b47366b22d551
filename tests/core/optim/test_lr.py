"""Learning-rate schedules against closed forms, and which parameters decay."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.optim.groups import decay_mask
from core.optim.lr import Schedule, learning_rate

SCHEDULES = get_args(Schedule)
ROOT = 0.5**0.5
BY_HAND: list[tuple[Schedule, dict[str, Any], list[float]]] = [
    ("constant", {}, [0.5, 1, 1, 1, 1, 1, 1, 1]),
    ("linear", {}, [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
    ("linear", {"end": 0.2}, [0.5, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]),
    ("cosine", {}, [0.5, 1, 1, (1 + ROOT) / 2, 0.5, (1 - ROOT) / 2, 0, 0]),
    ("cosine", {"end": 0.5}, [0.5, 1, 1, (3 + ROOT) / 4, 0.75, (3 - ROOT) / 4, 0.5, 0.5]),
    ("polynomial", {"power": 2.0}, [0.5, 1, 1, 9 / 16, 1 / 4, 1 / 16, 0, 0]),
    ("polynomial", {"power": 2.0, "end": 0.5}, [0.5, 1, 1, 25 / 32, 5 / 8, 17 / 32, 0.5, 0.5]),
    ("cosine_restarts", {"cycles": 2}, [0.5, 1, 1, 0.5, 1, 0.5, 0, 0]),
    ("cosine_restarts", {"cycles": 2, "end": 0.5}, [0.5, 1, 1, 0.75, 1, 0.75, 0.5, 0.5]),
]


@pytest.mark.parametrize(("schedule", "options", "expected"), BY_HAND, ids=[f"{s} {o}" for s, o, _ in BY_HAND])
def test_learning_rates_by_hand(schedule, options, expected):
    rates = [learning_rate(s, base=1.0, schedule=schedule, warmup_steps=2, total_steps=6, **options) for s in range(8)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-15)


def test_relations_between_schedules():
    def rates(schedule, **options):
        given = {"base": 3e-4, "warmup_steps": 3, "total_steps": 50, **options}
        return [learning_rate(s, schedule=schedule, **given) for s in range(60)]

    np.testing.assert_allclose(rates("polynomial", power=1.0, end=1e-5), rates("linear", end=1e-5), rtol=1e-12)
    assert rates("cosine_restarts", cycles=1) == rates("cosine")
    assert rates("linear", end=3e-4)[3:] == [3e-4] * 57


@given(
    schedule=st.sampled_from(SCHEDULES), warmup=st.integers(0, 30), total=st.integers(1, 60), end=st.floats(0, 1e-3),
    power=st.floats(0.2, 4), cycles=st.integers(1, 5),
)  # fmt: skip
def test_rates_rise_then_fall_between_base_and_end(schedule, warmup, total, end, power, cycles):
    options: dict = {"base": 1e-3, "warmup_steps": warmup, "total_steps": total, "end": end, "power": power}
    rates = [learning_rate(s, schedule=schedule, cycles=cycles, **options) for s in range(100)]
    assert all(0 <= rate <= 1e-3 * (1 + 1e-12) for rate in rates)
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    if warmup:
        assert math.isclose(rates[warmup - 1], 1e-3)
    after = rates[warmup:]
    if schedule != "cosine_restarts":
        assert all(a >= b - 1e-18 for a, b in pairwise(after))
    if schedule != "constant" and warmup < 100:
        assert rates[99] == end
        assert min(after) >= end * (1 - 1e-12)


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match=r"'step' is unknown; need one of constant, linear"):
        learning_rate(0, base=1.0, schedule="step", warmup_steps=5, total_steps=6)  # type: ignore[arg-type]  # the error
    with pytest.raises(ValueError, match=r"'none' is unknown; need one of all, matrices"):
        decay_mask([], "none")  # type: ignore[arg-type]  # the error


def test_which_parameters_decay():
    some = [SimpleNamespace(shape=shape) for shape in ((3, 4), (3,), (2, 2, 2), ())]
    assert decay_mask(some, "all") == [True] * 4
    assert decay_mask(some, "matrices") == [True, False, True, False]
