"""Statistics of runs: expected values by hand or from printed tables of Student's t, promises by seeded simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench import stats
from bench.simulate import Case, rates


def test_spread_by_hand():
    found = stats.spread([1.0, math.e, math.e**2])
    assert (found.runs, found.median, found.low, found.high) == (3, math.e, 1.0, math.e**2)
    assert found.relative_sd == pytest.approx(1.0)
    assert stats.spread([2.0]).relative_sd is None


def test_spread_within_runs_is_pooled():
    """Two runs at different levels: deviations 1/sqrt(2) and 0 with one degree of freedom each."""
    assert stats.within_run([[1.0, math.e], [5.0, 5.0]]) == pytest.approx(math.sqrt(0.5 / 2))
    assert stats.within_run([[1.0], [2.0]]) is None


def test_prediction_interval_by_hand():
    """Mean 3, deviation sqrt(2.5); t(0.975, 4) = 2.776 from the table."""
    half = 2.776 * math.sqrt(2.5) * math.sqrt(1 / 5 + 1 / 2)
    found = stats.prediction_interval([1, 2, 3, 4, 5], future=2, alpha=0.05, log=False)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-3)
    logs = stats.prediction_interval([math.exp(v) for v in (1, 2, 3, 4, 5)], future=2, alpha=0.05, log=True)
    assert (logs.low, logs.high) == pytest.approx((math.exp(3 - half), math.exp(3 + half)), rel=1e-2)


def test_an_interval_of_runs_without_spread_is_a_point():
    found = stats.prediction_interval([2.0, 2.0, 2.0], future=1, alpha=0.01, log=True)
    assert (found.low, found.high) == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize(("values", "log"), [([1.0], False), ([1.0, 0.0], True), ([1.0, float("nan")], True)])
def test_no_interval_from_one_run_or_from_zero(values, log):
    with pytest.raises(ValueError, match="need"):
        stats.prediction_interval(values, future=1, alpha=0.05, log=log)


def test_two_very_different_runs_give_a_finite_interval():
    found = stats.prediction_interval([1e-9, 1e9], future=1, alpha=0.001, log=True)
    assert math.isfinite(found.high)


def test_difference_by_hand():
    """Logarithms 0, 2 against 1, 3: ratio e, error sqrt(2), 2 degrees of freedom, t(0.975, 2) = 4.303."""
    found = stats.difference([1.0, math.e**2], [math.e, math.e**3], alpha=0.05)
    assert found.ratio == pytest.approx(math.e)
    assert found.interval is not None
    half = 4.303 * math.sqrt(2)
    assert math.log(found.interval.high) == pytest.approx(1 + half, rel=1e-3)
    assert math.log(found.interval.low) == pytest.approx(1 - half, rel=1e-3)


def test_difference_without_spread_or_with_one_run():
    exact = stats.difference([2.0, 2.0], [3.0, 3.0], alpha=0.05)
    assert (exact.ratio, exact.detectable) == (pytest.approx(1.5), 1.0)
    neither = stats.difference([2.0], [3.0], alpha=0.05)
    assert (neither.ratio, neither.interval, neither.detectable) == (pytest.approx(1.5), None, None)


def test_difference_from_a_single_run_by_hand():
    """Logarithms 0, 1, 2 against 3: the prediction interval for one more run, t(0.975, 2) = 4.303."""
    found = stats.difference([1.0, math.e, math.e**2], [math.e**3], alpha=0.05)
    assert found.interval is not None
    assert math.log(found.interval.high) == pytest.approx(2 + 4.303 * math.sqrt(1 + 1 / 3), rel=1e-3)
    turned = stats.difference([math.e**3], [1.0, math.e, math.e**2], alpha=0.05)
    assert turned.interval is not None
    assert turned.interval.low == pytest.approx(1 / found.interval.high)


def test_thirds():
    assert stats.thirds([1, 1, 1, 5, 5, 5, 2, 2, 2], least=9) == (1, 2)
    assert stats.thirds([1.0] * 8, least=9) is None


def test_false_alarms_are_as_rare_as_promised():
    """5 null runs against 3 new ones of an unchanged program, deviation 23 % as measured on a CPU."""
    rng, alpha, trials = np.random.default_rng(0), 0.05, 3_000
    values = np.exp(rng.normal(0, 0.23, (trials, 8)))
    outside = 0
    for row in values.tolist():
        interval = stats.prediction_interval(row[:5], future=3, alpha=alpha, log=True)
        outside += not interval.holds(stats.centre(row[5:], log=True))
    # Three standard deviations of a binomial share.
    assert outside / trials == pytest.approx(alpha, abs=3 * math.sqrt(alpha * (1 - alpha) / trials))


def test_the_smallest_visible_change_is_seen_in_four_of_five_cases():
    rng, sd, trials = np.random.default_rng(1), 0.02, 2_000
    seen = 0
    for _ in range(trials):
        null = np.exp(rng.normal(0, sd, 10))
        # The promise holds for the true deviation: scale the sample to it, so that `detectable` is told the truth.
        logs = np.log(null)
        told = np.exp((logs - logs.mean()) / logs.std(ddof=1) * sd)
        shift = stats.detectable(told.tolist(), future=3, alpha=0.01, log=True)
        new = np.exp(rng.normal(math.log(shift), sd, 3))
        seen += (
            stats.centre(new.tolist(), log=True)
            > stats.prediction_interval(null.tolist(), future=3, alpha=0.01, log=True).high
        )
    assert seen / trials == pytest.approx(stats.POWER, abs=0.03)


def test_steps_are_not_independent_samples():
    """Why the unit is the run: runs that differ by 23 % look different to any test over their steps."""
    rng = np.random.default_rng(2)
    runs = np.exp(rng.normal(0, 0.23, (14, 1)) + rng.normal(0, 0.07, (14, 30)))
    apart = 0
    for a in range(14):
        for b in range(a):
            steps = stats.difference(runs[a].tolist(), runs[b].tolist(), alpha=0.01)
            assert steps.interval is not None
            apart += not steps.interval.holds(1.0)
    assert apart / 91 > 0.5, "taking steps for samples cries wolf in most null pairs"


def test_the_whole_gate_keeps_its_promise_where_a_fixed_rule_cries_wolf():
    """Seeded; six interval checks a gate, nothing changed, deviation between runs as measured on a CPU."""
    found = rates(Case(sd=0.23), 400, seed=0)
    assert found["gate_fires"] <= 0.025, "1 % promised, three deviations of 400 trials allowed"
    assert found["five_percent_rule_fires"] > 0.9


def test_the_gate_sees_what_it_should_on_a_quiet_machine():
    assert rates(Case(sd=0.005, slower=1.05, null=10), 200, seed=0)["gate_fires"] > 0.99


def test_a_machine_that_wanders_breaks_the_promise():
    """Why null runs should be spread over days: runs of one sitting know nothing of the next."""
    assert rates(Case(sd=0.005, hour_sd=0.05), 200, seed=0)["gate_fires"] > 0.2
