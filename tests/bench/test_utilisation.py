"""Achieved FLOP/s, MFU and HFU by hand, null with the reason otherwise; the shapes that a peak is measured on."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from bench import cli, doctor
from bench.flops import Kind, Product
from bench.record_parts import Step
from bench.roofline import measure, shapes_of
from bench.utilisation import metrics_of
from core import ops

FLOPS = {"model_flops": 600, "hardware_flops": 800}
STEPS = [
    Step(index=0, seconds=9.0, tags=("compile",), extra=FLOPS),
    *(Step(index=i, seconds=s, extra=FLOPS) for i, s in ((1, 2.0), (2, 4.0), (3, 3.0))),
]


def values(steps=STEPS, roofline=None, cards=None):
    return {name: metric["value"] for name, metric in metrics_of(steps, roofline, cards=cards).items()}


def test_rates_by_hand():
    """Medians of 600/2, 600/4, 600/3 and of 800/..., a peak of 1000: MFU is of the model, HFU of what was executed."""
    found = values(roofline={"peak_flops_per_second": 1000.0})
    assert found["model_flops_per_step"] == 600
    assert found["model_flops_per_second"] == 200
    assert found["hardware_flops_per_second"] == pytest.approx(800 / 3)
    assert (found["mfu"], found["hfu"]) == (pytest.approx(0.2), pytest.approx(0.8 / 3))


def test_cards_share_the_work():
    found = values(roofline={"peak_flops_per_second": 1000.0}, cards=4)
    assert found["model_flops_per_second_per_card"] == 50
    assert found["mfu"] == pytest.approx(0.05)


def test_without_a_peak_there_is_no_mfu_and_the_reason_is_said():
    found = metrics_of(STEPS, None, cards=None)
    assert found["mfu"]["value"] is None
    assert found["hfu"]["reason"] == "no peak was measured in this run: set runtime.measure_peak"
    assert found["model_flops_per_second_per_card"]["reason"] == "ran on the CPU: there is no card"
    assert metrics_of(STEPS, {"reason": "because"}, cards=None)["mfu"]["reason"] == "because"
    assert all((metric["value"] is None) == bool(metric["reason"]) for metric in found.values())


def test_a_run_of_compiling_steps_has_no_rate_and_one_without_flops_no_metric():
    found = metrics_of(STEPS[:1], {"peak_flops_per_second": 1000.0}, cards=None)
    assert found["mfu"] == {"value": None, "unit": "1", "reason": "every step carries an excluded tag"}
    assert metrics_of([Step(index=0, seconds=1.0)], None, cards=None) == {}


def test_the_shapes_with_the_most_work_are_measured():
    def product(rows, inner, columns, times=1, kind: Kind = "linear"):
        return Product(name="x", kind=kind, rows=rows, inner=inner, columns=columns, times=times)

    products = [product(10, 10, 10), product(5, 5, 5, 100), product(10, 10, 10, 3), product(99, 99, 99, 9, "attention")]
    assert shapes_of(products, 10**9) == [(5, 5, 5), (10, 10, 10)]
    assert shapes_of([product(1000, 10, 10)], 2 * 50 * 100) == [(50, 10, 10)]  # fewer rows, the same layer


def test_a_peak_is_measured_through_the_seam(monkeypatch):
    seen = []
    real = ops.linear
    monkeypatch.setattr(ops, "linear", lambda x, w: seen.append((x.shape, w.shape)) or real(x, w))
    products = [Product(name="x", kind="linear", rows=64, inner=32, columns=48)]
    found = measure(products, "CPU", ms.float32)
    assert set(seen) == {((64, 32), (48, 32))}
    assert found["peak_flops_per_second"] == found["shapes"][0]["flops_per_second"] > 0
    assert measure([], "CPU", ms.float32)["peak_flops_per_second"] is None
    assert np.isfinite(found["peak_flops_per_second"])


def test_doctor_tells_the_roofline_or_why_there_is_none(monkeypatch):
    shape = {"rows": 2, "inner": 3, "columns": 4, "flops_per_second": 5e9}
    answer = {"shapes": [shape], "peak_flops_per_second": 5e9, "dtype": "Float32"}
    monkeypatch.setattr(doctor, "_answer", lambda command, env: answer)
    assert "5.0 GFLOP/s in Float32 on the shapes of tiny-1.5" in doctor._roofline("tiny-1.5")["detail"]
    monkeypatch.setattr(doctor, "_answer", lambda command, env: {"error": "exit code 1: x"})
    assert doctor._roofline("tiny-1.5")["detail"] == "not measured: exit code 1: x"
    assert cli.main(["doctor", "--roofline", "6b"]) == 2
