"""The loss scale by hand, against MindSpore's, and its state."""

from __future__ import annotations

import json
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from core.errors import WeightsError
from core.optim.loss_scale import LossScale


def _values(scale: LossScale, overflows: str) -> list[float]:
    values = []
    for overflow in overflows:
        scale.update(overflow == "x")
        values.append(scale.value)
    return values


def test_dynamic_by_hand():
    scale = LossScale.dynamic(8.0, factor=2.0, window=3)
    assert _values(scale, "..x...x..x....") == [8, 8, 4, 4, 4, 8, 4, 4, 4, 2, 2, 2, 4, 4]
    assert (scale.skipped, scale.clean) == (3, 1)


def test_it_never_falls_below_one_and_says_when_it_can_not_help():
    scale = LossScale.dynamic(2.0, factor=4.0, window=1)
    assert not scale.exhausted
    assert _values(scale, "xx.") == [1, 1, 4]
    assert _values(scale, "x") == [1]
    assert scale.exhausted


def test_it_stays_finite_in_fp32():
    scale = LossScale.dynamic(2.0**125, window=1)
    assert _values(scale, "....")[-1] == 2.0**127
    assert np.isfinite(np.float32(scale.value))


def test_static_stays_and_counts():
    scale = LossScale.static(1024.0)
    assert _values(scale, ".x.x") == [1024] * 4
    assert scale.skipped == 2
    assert scale.exhausted


def test_the_loss_scale_is_mindspores():
    ours, theirs = LossScale.dynamic(64.0, window=3), ms.amp.DynamicLossScaler(64, 2, 3)
    for overflowed in np.random.default_rng(0).random(40) < 0.3:
        ours.update(bool(overflowed))
        theirs.adjust(ms.Tensor(not overflowed))
        assert ours.value == float(theirs.scale_value)


def test_state_continues_through_json():
    whole = LossScale.dynamic(1000.0, factor=3.0, window=4)
    _values(whole, "..x...")
    resumed = LossScale.dynamic(1000.0, factor=3.0, window=4)
    resumed.load_state(json.loads(json.dumps(whole.state())))
    assert _values(resumed, ".x....") == _values(whole, ".x....")
    assert resumed.state() == whole.state()
    fresh = LossScale.dynamic(1000.0, factor=3.0, window=4)
    assert _values(fresh, "...x") != _values(LossScale.dynamic(1000.0, factor=3.0, window=3), "...x")


def test_wrong_state_and_values_are_refused():
    with pytest.raises(WeightsError, match="clean is missing; scale is unknown"):
        LossScale.static(1).load_state({"value": 1.0, "skipped": 0, "scale": 2})
    for make in (lambda: LossScale.static(0), lambda: LossScale.static(float("inf")), lambda: LossScale.dynamic(0.5)):
        with pytest.raises(ValueError, match="need"):
            make()
    wrong: list[dict[str, Any]] = [{"factor": 1.0}, {"window": 0}]
    for options in wrong:
        with pytest.raises(ValueError, match="need"):
            LossScale.dynamic(8.0, **options)
