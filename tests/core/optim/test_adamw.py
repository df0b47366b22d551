"""AdamW by hand, and what every optimiser promises: bundles, exact state, fp32 masters."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from core import native, ops
from core.errors import WeightsError
from core.optim import foreach
from tests.core.optim.helpers import (
    BOTH,
    SHAPES,
    adamw,
    arrays,
    came,
    everything,
    graphs_built,
    parameters,
    run,
    same_bits,
)


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_adamw_by_hand(mode):
    ops.configure(mode=mode)
    both = parameters([np.array([1.0, -2.0], np.float32)] * 2)
    optimizer = adamw(both, eps=1e-3, decay=[True, False])
    m, v = np.zeros(2), np.zeros(2)
    decayed = free = np.array([1.0, -2.0])
    for step, gradient in enumerate(([0.5, 1.0], [-1.0, 0.25], [0.0, 3.0]), start=1):
        optimizer.step([ms.Tensor(gradient, ms.float32)] * 2, 0.01, ms.Tensor(0.5, ms.float32))
        g = 0.5 * np.array(gradient)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        change = 0.01 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-3)
        decayed, free = decayed * (1 - 0.01 * 0.1) - change, free - change
        assert np.allclose(both[0].asnumpy(), decayed, rtol=1e-6)
        assert np.allclose(both[1].asnumpy(), free, rtol=1e-6)
    assert optimizer.state_bytes() == {"m": 16, "v": 16}


@pytest.mark.parametrize("make", BOTH)
def test_graph_equals_pynative(make):
    results = []
    for mode in ("pynative", "graph"):
        ops.configure(mode=mode)
        optimizer = make(parameters(arrays(0)))
        run(optimizer, range(3))
        results.append(everything(optimizer))
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(native.library().path is None, reason="the kernels need a C++ compiler")
def test_with_kernels_no_graph_is_built_for_adamw():
    """A compiled update keeps a buffer for each tensor of its graph."""
    ops.configure(mode="graph")
    values = arrays(0, [(6, 10)] * 3 + [(3,)] * 40)
    one = adamw(parameters(values))
    assert graphs_built(lambda: run(one, range(2))) == 0
    ops.configure(mode="graph", kernels="operators")
    other = adamw(parameters(values))
    run(other, range(2))
    assert same_bits(everything(one), everything(other))


@pytest.fixture
def large(monkeypatch):
    """Bundles as for a large model, by shape."""
    monkeypatch.setattr(foreach, "SMALL_BYTES", 0)


def _cut_into_single(monkeypatch):
    monkeypatch.setattr(foreach, "MAX_TENSORS", 1)


@pytest.mark.parametrize("make", BOTH)
def test_shapes_of_a_small_model_share_a_graph_and_change_no_bit(make, monkeypatch):
    """CAME's constants tell matrices from vectors: two graphs, not one."""
    ops.configure(mode="graph", kernels="operators")
    values = arrays(0, [(6, 10)] * 3 + [(3,)] * 2 + [(2, 3, 4)])
    small = make(parameters(values))
    graphs = 1 if make is adamw else 2
    assert graphs_built(lambda: run(small, range(2))) == graphs
    monkeypatch.setattr(foreach, "SMALL_BYTES", 0)
    by_shape = make(parameters(values))
    run(by_shape, range(2))
    assert len(small._for_each.bundles) == graphs
    assert len(by_shape._for_each.bundles) == 3
    assert same_bits(everything(small), everything(by_shape))


def test_a_small_model_of_many_tensors_is_cut():
    optimizer = adamw(parameters(arrays(0, [(3,)] * (foreach.SMALL_TENSORS + 1))))
    assert [len(bundle) for bundle in optimizer._for_each.bundles] == [foreach.SMALL_TENSORS, 1]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_bundles_change_no_bit(make, mode, monkeypatch):
    ops.configure(mode=mode)
    values = arrays(0, [(6, 10)] * 11 + [(3,)] * 2)  # 11 in bundles of 6: one place is filled with a repetition
    bundled = make(parameters(values))
    run(bundled, range(2))
    _cut_into_single(monkeypatch)
    single = make(parameters(values))
    run(single, range(2))
    assert [len(b) for b in bundled._for_each.bundles] == [6, 6, 2]
    assert len(single._for_each.bundles) == 13
    assert same_bits(everything(bundled), everything(single))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("make", BOTH)
def test_one_graph_for_each_shape(make):
    ops.configure(mode="graph", kernels="operators")
    counted = 11 * [(6, 10)] + 3 * [(7,)] + [(2, 3, 4)]
    optimizer = make(parameters(arrays(0, counted)))
    steps = [range(3), range(3, 5)]
    assert graphs_built(lambda: [run(optimizer, part, lr=0.1 * (1 + part[0])) for part in steps]) == 3
    partly = make(parameters(arrays(0, counted)), decay=[i % 2 == 0 for i in range(len(counted))])
    assert graphs_built(lambda: run(partly, range(2))) == 5, "decayed and not are two graphs"


@pytest.mark.usefixtures("large")
def test_two_optimisers_share_graphs():
    ops.configure(mode="graph", kernels="operators")
    shapes = [(6, 10), (7,)]
    both = [adamw(parameters(arrays(seed, shapes))) for seed in range(2)]
    assert graphs_built(lambda: [run(optimizer, range(2)) for optimizer in both]) == 2


@pytest.mark.usefixtures("large")
def test_the_count_of_graphs_sees_a_graph_for_each_tensor(monkeypatch):
    ops.configure(mode="graph", kernels="operators")
    # Bundles that are as long as it happens: what the padding of the last bundle is for.
    monkeypatch.setattr(foreach, "bundles", lambda signatures, sizes: [[0, 1, 2], [3, 4]])
    optimizer = adamw(parameters(arrays(0, [(6, 10)] * 5)))
    assert graphs_built(lambda: run(optimizer, range(2))) == 2


def test_bundles_by_hand(monkeypatch):
    monkeypatch.setattr(foreach, "MAX_TENSORS", 3)
    monkeypatch.setattr(foreach, "MAX_BYTES", 800)
    assert foreach.bundles("abaaba", [1] * 6) == [[0, 2], [3, 5], [1, 4]]
    assert foreach.bundles("aaaa", [1] * 4) == [[0, 1], [2, 3]]
    assert foreach.bundles("aaaaa", [1] * 5) == [[0, 1, 2], [3, 4, 4]]
    assert foreach.bundles("aaa", [100] * 3) == [[0, 1], [2, 2]], "two of 400 bytes"
    assert foreach.bundles("aa", [10**6] * 2) == [[0], [1]], "larger than a bundle may be"
    assert foreach.bundles("", []) == []


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16])
@pytest.mark.parametrize("make", BOTH)
def test_a_restored_optimiser_continues_bit_for_bit(make, dtype, tmp_path):
    ops.configure(mode="graph", kernels="operators")
    whole = make(parameters(arrays(0), dtype))
    run(whole, range(3))
    np.savez(tmp_path / "state.npz", **whole.state())
    at_three = [q.float().asnumpy().copy() for q in whole.parameters]
    run(whole, range(3, 6))

    resumed = make(parameters(at_three, dtype))
    with np.load(tmp_path / "state.npz") as stored:
        resumed.load_state(dict(stored))
    run(resumed, range(3, 6))
    assert same_bits(everything(resumed), everything(whole))

    forgetful = make(parameters(at_three, dtype))
    run(forgetful, range(3, 6))
    assert not same_bits(everything(forgetful), everything(whole)), "without the state the bits must differ"


def test_state_is_a_copy():
    optimizer = adamw(parameters(arrays(0)))
    run(optimizer, range(1))
    state, before = optimizer.state(), optimizer.state()
    optimizer.load_state(state)
    state["m.w0"][:] = 7
    run(optimizer, range(1, 2))
    other = adamw(parameters(arrays(0)))
    run(other, range(2))
    assert same_bits(optimizer.state(), other.state())
    assert not np.array_equal(before["m.w0"], state["m.w0"])


@pytest.mark.parametrize("dtype", [ms.bfloat16, ms.float16])
@pytest.mark.parametrize("make", BOTH)
def test_half_precision_parameters_are_rounded_masters(make, dtype):
    values = [np.full((4, 8), 1.0, np.float32)]
    half, full = make(parameters(values, dtype), weight_decay=0.0), make(parameters(values), weight_decay=0.0)
    for optimizer, kind in ((half, dtype), (full, ms.float32)):
        for _ in range(40):  # each step is lost when it is added to a half-precision 1.0
            optimizer.step([ms.Tensor(np.ones((4, 8), np.float32)).astype(kind)], 1e-4, 1.0)
    assert half.parameters[0].dtype == dtype
    master = half.state()["master.w0"]
    assert master.dtype == np.float32
    assert np.array_equal(master, full.parameters[0].asnumpy())
    assert np.array_equal(half.values()[0].asnumpy(), full.values()[0].asnumpy())
    rounded = ms.Tensor(master).astype(dtype).float().asnumpy()
    assert np.array_equal(half.parameters[0].float().asnumpy(), rounded)
    assert rounded.max() < 1.0
    assert half.state_bytes()["master"] == 4 * 32
    assert all(value.dtype == np.float32 for name, value in half.state().items() if name != "step")


BROKEN = {
    "step is missing": lambda state: state.pop("step"),
    "m.w1 is missing": lambda state: state.pop("m.w1"),
    "v.w9 is unknown": lambda state: state.update({"v.w9": np.zeros(2, np.float32)}),
    "m.w0: got float32 [10, 6], need float32 [6, 10]": lambda state: state.update({"m.w0": state["m.w0"].T}),
    "m.w0: got float64 [6, 10], need float32 [6, 10]": lambda s: s.update({"m.w0": s["m.w0"].astype(np.float64)}),
    "master.w0 is unknown": lambda state: state.update({"master.w0": state["m.w0"]}),
}


@pytest.mark.parametrize("message", BROKEN)
@pytest.mark.parametrize("make", BOTH)
def test_a_wrong_state_is_refused_in_one_line_and_nothing_is_taken_over(make, message):
    optimizer = make(parameters(arrays(0)))
    before = everything(optimizer)
    state = make(parameters(arrays(0))).state()
    state |= {name: value + 1 for name, value in state.items()}
    BROKEN[message](state)
    with pytest.raises(WeightsError) as caught:
        optimizer.load_state(state)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"state of {type(optimizer).__name__}: 1 problem: ")
    assert "\n" not in str(caught.value)
    assert same_bits(everything(optimizer), before)


def test_the_state_of_one_optimiser_is_not_another_ones():
    with pytest.raises(WeightsError, match=r"v_row\.w0 is missing.*v\.w0 is unknown"):
        came(parameters(arrays(0))).load_state(adamw(parameters(arrays(0))).state())


def test_gradients_of_other_shapes_are_an_error():
    optimizer = adamw(parameters(arrays(0)))
    gradients = [ms.Tensor(g) for g in arrays(1, SHAPES)]
    with pytest.raises(AssertionError):
        optimizer.step(gradients[::-1], 1e-3, 1.0)
    with pytest.raises(AssertionError):
        optimizer.step(gradients[:-1], 1e-3, 1.0)
    with pytest.raises(AssertionError, match="one name"):
        adamw([optimizer.parameters[0]] * 2)


def test_the_factor_is_applied_in_fp32():
    """A factor such as 1 / loss scale would vanish in fp16: 1e-8 is 0 there."""
    optimizer = adamw(parameters([np.zeros(4, np.float32)], ms.float16))
    optimizer.step([ms.Tensor(np.full(4, 1000, np.float16))], 1e-2, 1e-8)
    assert np.allclose(optimizer.state()["m.w0"], 1e-6, rtol=1e-5)


@pytest.mark.parametrize("make", [adamw, came])
def test_an_update_is_in_place(make):
    """What else refers to a parameter's memory sees the new values: there is no second copy of the old ones."""
    both = parameters([np.full((3, 4), 2.0, np.float32), np.full(5, 2.0, np.float32)])
    shared = [q.asnumpy() for q in both]
    before = [array.copy() for array in shared]
    optimizer = make(both)
    optimizer.step([ms.Tensor(np.ones(q.shape, np.float32)) for q in both], 0.01)
    for q, array, old in zip(both, shared, before, strict=True):
        assert np.array_equal(q.asnumpy(), array)
        assert not np.array_equal(array, old)
