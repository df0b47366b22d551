"""Which steps count, their medians, and the proof of steadiness; expected values computed by hand."""

from __future__ import annotations

import pytest

from bench.record_parts import Stage, Step
from bench.timer import EXCLUDED_TAGS, compile_seconds, first_not_finite, summarize


def _steps(*seconds: float, **more) -> list[Step]:
    return [Step(index=i, seconds=s, **more) for i, s in enumerate(seconds)]


def _summary(steps, cards=None):
    return summarize(steps, cards=cards, no_cards_reason="no card")


@pytest.mark.parametrize("tag", sorted(EXCLUDED_TAGS))
def test_tagged_steps_are_left_out_and_counted(tag):
    steps = [Step(index=0, seconds=100.0, tags=(tag, "other")), *_steps(1.0, 3.0, 2.0)]
    summary, _ = _summary(steps)
    assert (summary.steps_counted, summary.steps_excluded, summary.step_seconds_median) == (3, 1, 2.0)
    assert (summary.step_seconds_min, summary.step_seconds_max) == (1.0, 3.0)


def test_other_tags_count():
    assert _summary([Step(index=0, seconds=1.0, tags=("first",))])[0].steps_counted == 1


def test_rates_are_medians_and_per_card():
    summary, reasons = _summary(_steps(1.0, 2.0, 4.0, samples=8, frames=16), cards=4)
    assert (summary.samples_per_second, summary.samples_per_second_per_card) == (4.0, 1.0)
    assert summary.frames_per_second == 8.0
    assert summary.tokens_per_second is None
    assert reasons["summary.tokens_per_second"] == "0 of 3 counted steps say how many tokens they processed"


def test_a_rate_is_null_when_one_step_does_not_say():
    steps = [*_steps(1.0, samples=8), Step(index=1, seconds=1.0)]
    summary, reasons = _summary(steps)
    assert summary.samples_per_second is None
    assert reasons["summary.samples_per_second"] == "1 of 2 counted steps say how many samples they processed"


@pytest.mark.parametrize(
    ("steps", "reason"),
    [([], "the run reported no steps"), (_steps(1.0, tags=("compile",)), "every step carries an excluded tag")],
)
def test_no_counted_steps_means_null_with_the_reason(steps, reason):
    summary, reasons = _summary(steps)
    nulls = {f"summary.{k}" for k, v in summary.model_dump().items() if v is None}
    assert reasons == dict.fromkeys(nulls, reason)


def test_every_null_of_any_summary_has_a_reason():
    for steps in (_steps(1.0), _steps(*[1.0] * 9), _steps(*[1.0] * 9, samples=1)):
        summary, reasons = _summary(steps)
        assert set(reasons) == {f"summary.{k}" for k, v in summary.model_dump().items() if v is None}


@pytest.mark.parametrize(
    ("last", "drift", "steady"), [(1.0, 0.0, True), (1.09, 0.09, True), (1.11, 0.11, False), (0.85, -0.15, False)]
)
def test_steadiness_compares_the_first_with_the_last_third(last, drift, steady):
    summary, _ = _summary(_steps(*[1.0] * 3, *[1.0] * 4, *[last] * 3))
    assert (summary.first_third_seconds, summary.last_third_seconds, summary.steady) == (1.0, last, steady)
    assert summary.drift == pytest.approx(drift)


def test_one_outlier_in_a_third_does_not_make_a_run_unsteady():
    assert _summary(_steps(9.0, *[1.0] * 8))[0].steady is True


def test_compile_seconds_add_tagged_steps_and_stages():
    stages = [Stage(name="train/compile", seconds=2.0), Stage(name="compile_cache", seconds=9.0)]
    assert compile_seconds(_steps(5.0, tags=("compile",)), stages) == (7.0, None)
    assert compile_seconds(_steps(5.0), []) == (None, "no step or stage was tagged compile")


def test_first_not_finite_names_the_step():
    steps = [Step(index=4, seconds=1.0, loss=1.0, loss_hex=(1.0).hex()), Step(index=5, seconds=1.0, loss_hex="-inf")]
    assert first_not_finite(steps) == "loss is -inf at step 5"
    assert first_not_finite(steps[:1]) is None
    assert first_not_finite(_steps(1.0)) is None
