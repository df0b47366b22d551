"""Scaling laws: recovered by hand, judged on points they have not seen, silent far away."""

from __future__ import annotations

from typing import Any

import pytest

from bench import fit
from core.errors import UserError

XS = [9.0, 17.0, 25.0, 33.0, 49.0]


def rows(law: Any, **more: Any) -> list[dict[str, Any]]:
    return [
        {"values": {"frames": x, "mode": "graph"}, "status": "ok", "step_seconds_median": law(x), **more} for x in XS
    ]


@pytest.mark.parametrize(
    ("law", "model", "coefficients"),
    [
        (lambda x: 2 + 3 * x, "linear", (2, 3)),
        (lambda x: 1 + 0.5 * x + 0.25 * x * x, "quadratic", (1, 0.5, 0.25)),
        (lambda x: 5 * x**1.7, "power", (5, 1.7)),
    ],
)
def test_a_law_is_recovered(law, model, coefficients):
    found = fit.best([(x, law(x)) for x in XS])
    assert found is not None
    assert (found[0].model, found[1]) == (model, pytest.approx(0, abs=1e-6))
    assert found[0].coefficients == pytest.approx(coefficients)


def test_leave_one_out_by_hand():
    """y = x but for the last point: the line through the others says 3 where 6 was measured, and so on."""
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, 6.0)]
    # Without the third: y = x says 3, an error of -1/2. Without the second: 2.5 x - 1.5 says 3.5, +3/4. Without the
    # first: 4 x - 6 says -2, -3.
    error, worst = fit.leave_one_out(points, "linear")
    assert worst == pytest.approx(3)
    assert error == pytest.approx(((0.5**2 + 0.75**2 + 3**2) / 3) ** 0.5)


def test_noise_shows_in_the_error():
    noisy = [(x, (2 + 3 * x) * factor) for x, factor in zip(XS, (1.2, 0.8, 1.2, 0.8, 1.2), strict=True)]
    found = fit.best(noisy)
    assert found is not None
    assert found[1] > 0.2
    (told,) = fit.fits_of(rows(dict(noisy).__getitem__), ["step_seconds_median"])
    with pytest.raises(UserError, match="misses points it was not fitted on"):
        told.predict(33)


def test_too_few_points_or_one_twice_give_no_fit():
    assert fit.best([(1, 1), (2, 2), (3, 3)]) is None
    assert fit.best([(1, 1), (2, 2), (3, 3), (3, 4)]) is None
    assert fit.best([(1, 1), (2, 2), (3, 3), (4, 0)]) is None  # a zero is no measurement


def test_far_extrapolation_is_refused():
    (found,) = fit.fits_of(rows(lambda x: 2 + 3 * x), ["step_seconds_median"])
    assert found.predict(69) == pytest.approx(209)  # 49 and half of the 40 between 9 and 49
    with pytest.raises(UserError, match=r"frames=70: measured from 9 to 49, predicted to at most -11 to 69"):
        found.predict(70)
    near, far = (fit.predicted([found], "frames", x)[0] for x in (49, 161))
    assert near["value"] == pytest.approx(149)
    assert far["value"] is None
    assert "measure nearer to it" in far["reason"]


def test_a_law_that_falls_below_zero_says_nothing():
    (found,) = fit.fits_of(rows(lambda x: 50 - x), ["step_seconds_median"])
    with pytest.raises(UserError, match="measure nearer"):
        found.predict(60)


def test_rows_that_failed_and_missing_values_are_left_out():
    good, bad = rows(lambda x: 2 + 3 * x), rows(lambda x: 1e6)
    bad = [row | {"status": "oom"} for row in bad]
    (found,) = fit.fits_of(good + bad, ["step_seconds_median"])
    assert found.law.coefficients == pytest.approx((2, 3))
    assert fit.fits_of([row | {"step_seconds_median": None} for row in good], ["step_seconds_median"]) == []
    assert fit.predicted([], "frames", 9)[0]["value"] is None


def test_other_axes_are_kept_apart_and_repeats_are_a_median():
    graph = rows(lambda x: 2 + 3 * x)
    eager = [row | {"values": row["values"] | {"mode": "pynative"}} for row in rows(lambda x: 4 + 6 * x)]
    outlier = [row | {"step_seconds_median": 1e3} for row in graph]
    found = fit.fits_of([*graph, *graph, *outlier, *eager], ["step_seconds_median"])
    assert [f.where for f in found] == [{"mode": "graph"}, {"mode": "pynative"}]
    assert found[0].law.coefficients == pytest.approx((2, 3))
    assert "leave-one-out error 0.0 %" in fit.told(found[0].data(), "s")
