"""Which time steps are visited: by hand, and properties that hold for every n and T."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.presets import PRESETS
from core.schedulers.ddim import CogVideoXDDIMScheduler
from core.schedulers.timesteps import KINDS, checked, leading, linear_quadratic, linspace, spaced, trailing

CONFIG = PRESETS["1.5-5b"].scheduler
sizes = st.integers(1, 1200).flatmap(lambda total: st.tuples(st.integers(1, total), st.just(total)))


@pytest.mark.parametrize(
    ("function", "n", "expected"),
    [
        (trailing, 1, [999]),
        (trailing, 4, [999, 749, 499, 249]),
        (trailing, 7, [999, 856, 713, 570, 428, 285, 142]),
        (linspace, 1, [0]),
        (linspace, 2, [999, 0]),
        (linspace, 4, [999, 666, 333, 0]),
        (leading, 1, [0]),
        (leading, 4, [750, 500, 250, 0]),
        (linear_quadratic, 1, [999]),
        # second half by hand: T (1 - 1/4) - 1
        (linear_quadratic, 2, [999, 749]),
        (linear_quadratic, 3, [999, 998, 748]),
        # h = 5, m = 5: 996 (36 - j^2) / 36 - 1 = 967.33, 884.33, 746, 552.33, 303.33
        (linear_quadratic, 10, [999, 998, 997, 996, 995, 967, 884, 746, 552, 303]),
    ],
)
def test_by_hand(function, n, expected):
    assert function(n, 1000).tolist() == expected


def test_leading_offset_and_its_limit():
    assert spaced("leading", 4, 1000, 1).tolist() == [751, 501, 251, 1]
    with pytest.raises(UserError, match=r"timesteps\[0\]: got 1000"):
        spaced("leading", 1000, 1000, 1)


def test_trailing_has_n_steps_where_the_published_range_has_one_more():
    published = np.round(np.arange(1000, 0, -1000 / 61)).astype(np.int64) - 1
    assert len(published) == 62
    assert published[-1] == -1
    assert trailing(61, 1000).tolist() == published[:61].tolist()


@settings(max_examples=150, deadline=None)
@given(sizes, st.sampled_from(KINDS))
def test_every_kind_gives_n_strictly_decreasing_steps_inside_the_range(size, kind):
    n, total = size
    steps = spaced(kind, n, total)
    assert steps.dtype == np.int64
    assert len(steps) == n
    assert (np.diff(steps) < 0).all()
    assert steps[-1] >= 0
    assert steps[0] < total
    if kind in ("trailing", "linear-quadratic"):
        assert steps[0] == total - 1
    if kind == "linspace" or n == total:
        assert steps[-1] == 0
    assert checked(steps, total).tolist() == steps.tolist()


@settings(max_examples=100, deadline=None)
@given(sizes)
def test_linear_quadratic_first_half_is_linear_and_the_rest_is_the_rounded_parabola(size):
    n, total = size
    steps, linear = linear_quadratic(n, total), (n + 1) // 2
    assert steps[:linear].tolist() == list(range(total - 1, total - 1 - linear, -1))
    j = np.arange(1, n - linear + 1)
    parabola = (total - linear + 1) * (1 - (j / (n - linear + 1)) ** 2) - 1
    # Only uniqueness may move a step off the formula: below it while the parabola is flatter than one a step,
    # above it where the steps that follow still need room.
    moved_down = steps[linear:] < parabola - 0.5 - 1e-9
    assert (steps[linear:][moved_down] == steps[linear - 1 : -1][moved_down] - 1).all()
    moved_up = steps[linear:] > parabola + 0.5 + 1e-9
    assert (steps[linear:][moved_up] == n - 1 - np.arange(linear, n)[moved_up]).all()


def test_linear_quadratic_of_every_n_up_to_1000_and_all_is_all():
    for n in range(1, 1001):
        steps = linear_quadratic(n, 1000)
        assert (len(steps), steps[0]) == (n, 999)
        assert steps[-1] >= 0, n
        assert (np.diff(steps) < 0).all(), n
    assert linear_quadratic(1000, 1000).tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "empty list"),
        ([999, 999], r"timesteps\[1\]: got 999 after 999"),
        ([10, 20], r"timesteps\[1\]: got 20 after 10"),
        ([1000, 1], r"timesteps\[0\]: got 1000"),
        ([5, -1], r"timesteps\[1\]: got -1"),
        ([5, 2.5], r"timesteps\[1\]: got 2.5"),
        ([True, 0], r"timesteps\[0\]: got True"),
    ],
)
def test_illegal_lists_name_the_culprit(values, words):
    with pytest.raises(UserError, match=words) as caught:
        checked(values, 1000)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n", [0, -1, 1001, 2.0, True])
@pytest.mark.parametrize("kind", KINDS)
def test_illegal_numbers_of_steps(kind, n):
    with pytest.raises(UserError, match="from 1 to 1000"):
        spaced(kind, n, 1000)


def _ends(n: int, **choice) -> list[int]:
    scheduler = CogVideoXDDIMScheduler(CONFIG)
    scheduler.set_timesteps(n, **choice)
    return [max(-1, scheduler.previous_timestep(t)) for t in scheduler.timesteps.tolist()]


@pytest.mark.parametrize("n", [n for n in range(1, 1001) if 1000 % n == 0])
def test_both_rules_agree_where_n_divides_the_training_steps(n):
    assert _ends(n, kind="trailing") == _ends(n, kind="trailing", previous="list")


def test_published_arithmetic_misses_its_own_list_elsewhere():
    # The numbers of docs/design/004: trailing, n = 7 (142 a step, not 142.86) and n = 60.
    assert _ends(7, kind="trailing") == [857, 714, 571, 428, 286, 143, 0]
    assert _ends(7, kind="trailing", previous="list") == [856, 713, 570, 428, 285, 142, -1]
    missed = [
        a != b for a, b in zip(_ends(60, kind="trailing"), _ends(60, kind="trailing", previous="list"), strict=True)
    ]
    assert sum(missed) == 40


def test_lists_and_linear_quadratic_end_each_step_at_the_next_element():
    assert _ends(2, kind="linear-quadratic") == [749, -1]
    assert _ends(3, timesteps=[900, 20, 3]) == [20, 3, -1]
    assert _ends(3, timesteps=[900, 20, 3], previous="reference") == [567, -1, -1]


def test_default_kind_is_the_config_s():
    for kind in KINDS:
        scheduler = CogVideoXDDIMScheduler(replace(CONFIG, timestep_spacing=kind))
        scheduler.set_timesteps(10)
        assert scheduler.timesteps.tolist() == spaced(kind, 10, 1000).tolist()
        assert scheduler.previous == ("list" if kind == "linear-quadratic" else "reference")


def test_conflicting_choices_are_refused():
    scheduler = CogVideoXDDIMScheduler(CONFIG)
    for arguments, words in [
        ({"n": 3, "timesteps": [5, 4]}, "2 values but 3 steps"),
        ({"kind": "trailing", "timesteps": [5, 4]}, "one of the two"),
        ({}, "got nothing"),
        ({"n": 3, "kind": "karras"}, "'karras', need one of trailing"),
        ({"n": 3, "previous": "next"}, "'reference' or 'list'"),
    ]:
        with pytest.raises(UserError, match=words):
            scheduler.set_timesteps(**arguments)
