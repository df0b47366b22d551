"""Averages by hand, their warm-up, exact saving, and parameters that come back."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from core import ops
from core.errors import WeightsError
from core.optim import foreach
from core.optim.ema import EMA, ema_decay
from tests.core.optim.helpers import adamw, arrays, graphs_built, parameters, run, same_bits


def test_decay_by_hand():
    assert ema_decay(0, 0.9999, warmup=False) == ema_decay(10**9, 0.9999, warmup=False) == 0.9999
    assert ema_decay(0, 0.9999, warmup=True) == 0.0
    assert ema_decay(7, 0.9999, warmup=True) == pytest.approx(0.75)
    assert ema_decay(26, 0.9999, warmup=True) == pytest.approx(8 / 9)
    assert ema_decay(10**9, 0.9999, warmup=True) == 0.9999


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_averages_by_hand(mode, warmup):
    ops.configure(mode=mode)
    held = parameters([np.array([1.0, -2.0], np.float32), np.full((2, 3), 4.0, np.float32)])
    ema = EMA(held, 0.5, warmup=warmup)
    expected = [q.asnumpy().copy() for q in held]
    for step in range(4):
        decay = min(0.5, 1 - (1 + step) ** (-2 / 3)) if warmup else 0.5
        for i, value in enumerate(arrays(step, [(2,), (2, 3)])):
            held[i].set_data(ms.Tensor(value))
            expected[i] = decay * expected[i] + (1 - decay) * value
        ema.update(step)
        for average, by_hand in zip(ema.averages, expected, strict=True):
            np.testing.assert_allclose(average.asnumpy(), by_hand, rtol=1e-6, atol=1e-7)
    assert ema.state_bytes() == {"ema": 32}


def test_what_stands_still_is_not_moved_by_rounding():
    held = parameters(arrays(0))
    ema = EMA(held, 0.9999, warmup=False)
    for step in range(20):
        ema.update(step)
    assert all(np.array_equal(a.asnumpy(), q.asnumpy()) for a, q in zip(ema.averages, held, strict=True))


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16, ms.float16])
def test_swapped_parameters_come_back_bit_for_bit_even_after_an_exception(dtype):
    held = parameters(arrays(0), dtype)
    special = np.array([[0.0, -0.0, np.nan, np.inf, -np.inf]], np.float32)
    held[4].set_data(ms.Tensor(special).astype(dtype))
    ema = EMA(held, 0.9, warmup=False)
    for q, value in zip(held[:4], arrays(1), strict=False):
        q.set_data(ms.Tensor(value).astype(dtype))
    ema.update(0)
    before, averages = [q.asnumpy().tobytes() for q in held], ema.state()

    def inside():
        with ema.swapped():
            for i, q in enumerate(held):
                assert q.dtype == dtype
                expected = ms.Tensor(averages[f"ema.w{i}"]).astype(dtype).asnumpy()
                assert q.asnumpy().tobytes() == expected.tobytes()
            assert held[0].asnumpy().tobytes() != before[0]
            held[0].copy_(
                ms.Tensor(np.full((6, 10), 7, np.float32)).astype(dtype)
            )  # written in place: must reach neither the average nor what comes back
            raise RuntimeError("validation failed")

    with pytest.raises(RuntimeError, match="validation failed"):
        inside()
    assert [q.asnumpy().tobytes() for q in held] == before
    assert same_bits(ema.state(), averages)


def test_no_update_and_no_second_swap_while_swapped():
    ema = EMA(parameters(arrays(0)), 0.9, warmup=False)
    with ema.swapped():
        with pytest.raises(AssertionError, match="hold the averages"):
            ema.update(0)
        with pytest.raises(AssertionError, match="already"), ema.swapped():
            pass
    ema.update(0)


def test_training_after_a_swap_has_the_same_bits():
    results = []
    for look in (False, True):
        optimizer = adamw(parameters(arrays(0)))
        ema = EMA(optimizer.parameters, 0.9, warmup=True)
        for step in range(3):
            run(optimizer, range(step, step + 1))
            ema.update(step)
            if look:
                with ema.swapped():
                    pass
        results.append({str(q.name): q.asnumpy() for q in optimizer.parameters} | optimizer.state() | ema.state())
    assert same_bits(*results)


def test_masters_are_averaged_where_there_are_some():
    optimizer = adamw(parameters([np.ones((4, 8), np.float32)], ms.bfloat16), weight_decay=0.0)
    of_masters, of_rounded = (EMA(optimizer.parameters, 0.5, warmup=False) for _ in range(2))
    for step in range(5):  # too small for bf16
        optimizer.step([ms.Tensor(np.ones((4, 8), np.float32))], 1e-4)
        of_masters.update(step, optimizer.values())
        of_rounded.update(step)
    assert (of_rounded.averages[0].asnumpy() == 1).all()
    assert (of_masters.averages[0].asnumpy() < 1).all()


def test_state_continues_bit_for_bit(tmp_path):
    ops.configure(mode="graph")
    held = parameters(arrays(0))
    whole = EMA(held, 0.9, warmup=True)

    def on(ema, steps):
        for step in steps:
            for q, value in zip(held, arrays(step), strict=True):
                q.set_data(ms.Tensor(value))
            ema.update(step)

    on(whole, range(1, 4))
    np.savez(tmp_path / "ema.npz", **whole.state())  # type: ignore[arg-type]  # pyright reads ** as allow_pickle
    on(whole, range(4, 6))
    resumed = EMA(held, 0.9, warmup=True)
    with np.load(tmp_path / "ema.npz") as stored:
        resumed.load_state(dict(stored))
    on(resumed, range(4, 6))
    assert same_bits(resumed.state(), whole.state())


def test_a_wrong_state_is_refused():
    ema = EMA(parameters(arrays(0)), 0.9, warmup=False)
    state = ema.state()
    state["ema.w9"] = state.pop("ema.w0")
    state["ema.w1"] = state["ema.w1"][:3]
    with pytest.raises(WeightsError) as caught:
        ema.load_state(state)
    assert str(caught.value) == (
        "state of EMA: 3 problems: ema.w0 is missing; ema.w9 is unknown; ema.w1: got float32 [3], need float32 [9]"
    )


def test_one_graph_for_each_shape(monkeypatch):
    monkeypatch.setattr(foreach, "SMALL_BYTES", 0)  # as for a large model
    ops.configure(mode="graph", kernels="operators")
    ema = EMA(parameters(arrays(0, 11 * [(6, 10)] + [(7,)])), 0.9, warmup=True)
    assert graphs_built(lambda: [ema.update(step) for step in range(3)]) == 2
