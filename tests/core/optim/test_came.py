"""CAME by hand, against stored runs of came-pytorch, in shards, and in the corners."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from core import ops
from core.optim.came import CAME, unsharded, update
from tests.core.optim.helpers import arrays, came, everything, parameters, run
from tests.tolerances import OPERATOR, relative_error

GOLDEN = Path(__file__).parents[2] / "golden"


def _stored(number: int) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"came-{number:02d}.npz") as file:
        held = dict(file)
    outputs = {name.removeprefix("output."): value for name, value in held.items() if name.startswith("output.")}
    return json.loads(str(held["config"])), held, outputs


def _replayed(settings: dict, held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    settings = dict(settings)
    lr = settings.pop("lr")
    count = len([name for name in held if name.startswith("start.")])
    optimizer = CAME(parameters([held[f"start.{i}"] for i in range(count)]), **settings)
    for step in range(len(held["gradient.0"])):
        optimizer.step([ms.Tensor(held[f"gradient.{i}"][step]) for i in range(count)], lr)
    result = everything(optimizer)
    return {name if "." in name else f"value.{name}": value for name, value in result.items() if name != "step"}


@pytest.mark.parametrize(("number", "mode"), [(0, "pynative"), (1, "pynative"), (2, "pynative"), (0, "graph")])
def test_twenty_steps_of_came_pytorch(number, mode):
    ops.configure(mode=mode)
    settings, held, outputs = _stored(number)
    ours = _replayed(settings, held)
    assert ours.keys() == outputs.keys()
    assert len(held["gradient.0"]) == 20
    assert {value.ndim for name, value in outputs.items() if name.startswith("value")} == {1, 2, 3, 5}
    assert max(relative_error(ours[name], outputs[name]) for name in ours) <= OPERATOR


@pytest.mark.parametrize("change", [{"betas": [0.9, 0.999, 0.9998]}, {"eps": [1e-9, 1e-16]}, {"weight_decay": 0.101}])
def test_other_settings_than_the_stored_run_are_seen(change):
    settings, held, outputs = _stored(0)
    ours = _replayed(settings | change, held)
    assert max(relative_error(ours[name], outputs[name]) for name in ours) > 10 * OPERATOR


def _inverse_root(row, column):
    return 1 / np.sqrt(np.outer(row, column) / row.mean())


def test_two_steps_of_a_matrix_and_a_vector_by_hand():
    b1, b2, b3, e1, e2, lr, wd, bound = 0.9, 0.8, 0.7, 1e-3, 1e-2, 0.1, 0.5, 0.6
    matrix, vector = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]), np.array([2.0, -1.0])
    both = parameters([matrix.astype(np.float32), vector.astype(np.float32)])
    optimizer = CAME(both, betas=(b1, b2, b3), eps=(e1, e2), weight_decay=wd, clip_threshold=bound)
    row, column, res_row, res_column, m = np.zeros(2), np.zeros(3), np.zeros(2), np.zeros(3), np.zeros((2, 3))
    v, mv = np.zeros(2), np.zeros(2)
    for given in (
        ([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], [0.3, -4.0]),
        ([[-2.0, 1.0, 1.0], [0.1, 0.2, -1.0]], [1.0, 1.0]),
    ):
        g, h = (np.array(values) for values in given)
        row, column = b2 * row + (1 - b2) * (g * g + e1).mean(1), b2 * column + (1 - b2) * (g * g + e1).mean(0)
        u = _inverse_root(row, column) * g
        u = u / max(1, np.sqrt((u * u).mean()) / bound)
        m = b1 * m + (1 - b1) * u
        residual = (u - m) ** 2 + e2
        res_row, res_column = b3 * res_row + (1 - b3) * residual.mean(1), b3 * res_column + (1 - b3) * residual.mean(0)
        matrix = matrix * (1 - lr * wd) - lr * _inverse_root(res_row, res_column) * m
        v = b2 * v + (1 - b2) * (h * h + e1)
        w = h / np.sqrt(v)
        mv = b1 * mv + (1 - b1) * w / max(1, np.sqrt((w * w).mean()) / bound)
        vector = vector * (1 - lr * wd) - lr * mv
        optimizer.step([ms.Tensor(g, ms.float32), ms.Tensor(h, ms.float32)], lr)
        np.testing.assert_allclose(both[0].asnumpy(), matrix, rtol=1e-5)
        np.testing.assert_allclose(both[1].asnumpy(), vector, rtol=1e-5)


def test_state_is_factored():
    optimizer = came(parameters(arrays(0, [(100, 200), (4, 5, 6), (7,)])))
    held = {name: value.shape for name, value in optimizer.state().items()}
    assert held["v_row.w0"] == (100,)
    assert held["v_column.w0"] == (200,)
    assert (held["residual_row.w1"], held["residual_column.w1"]) == ((4, 5), (4, 6))
    assert held["v.w2"] == (7,)
    sizes = optimizer.state_bytes()
    assert sizes == {
        "m": 4 * (20000 + 120 + 7), "v": 28, "v_row": 4 * 120, "v_column": 4 * 224, "residual_row": 4 * 120,
        "residual_column": 4 * 224,
    }  # fmt: skip


class WaitingError(Exception):
    """Raised by a shard whose mean needs the other shards."""


class Exchange:
    """A mean over shards in one process: every shard runs again until all means it asks for are known."""

    def __init__(self):
        self.known: list[ms.Tensor] = []
        self.asked = 0

    def __call__(self, mean: ms.Tensor) -> ms.Tensor:
        self.asked += 1
        if self.asked > len(self.known):
            raise WaitingError(mean)
        return self.known[self.asked - 1]

    def run(self, shards: list) -> list:
        """Results of the functions ``shards``."""
        while True:
            results, means = [], []
            for shard in shards:
                self.asked = 0
                try:
                    results.append(shard())
                except WaitingError as waiting:
                    means.append(waiting.args[0])
            if not means:
                return results
            assert not results, "the shards disagree on what to exchange"
            self.known.append(ms.Tensor(sum(mean.asnumpy() for mean in means) / len(means)))


def _uneven(gradient):
    """Row i times i + 1: shards that differ."""
    return gradient * np.arange(1.0, len(gradient) + 1).reshape(-1, *(1,) * (gradient.ndim - 1))


def _sharded(shape, count, exchange):
    """Three steps of a tensor in ``count`` parts -> value, m and the other state of each part; means exchanged."""
    optimizers = [
        came(parameters([part]), sharded=[True], shards_mean=exchange)
        for part in np.split(arrays(0, [shape])[0], count)
    ]
    static = optimizers[0]._for_each.statics[0]
    held = [{"value": o.parameters[0], **o.states[0]} for o in optimizers]
    factor, lr, asked = ms.Tensor(1.0, ms.float32), ms.Tensor(0.01, ms.float32), 0
    for step in range(3):
        gradients = np.split(_uneven(arrays(step + 1, [shape])[0]), count)
        exchange.known = []
        results = exchange.run(
            [
                lambda p=p, g=g: update([{**p, "gradient": ms.Tensor(g.astype(np.float32))}], factor, lr, **static)
                for p, g in zip(held, gradients, strict=True)
            ]
        )
        held = [dict(zip(p, values, strict=True)) for p, values in zip(held, results, strict=True)]
        asked = len(exchange.known)
    return [{name: tensor.asnumpy() for name, tensor in p.items()} for p in held], asked


@pytest.mark.parametrize(
    ("shape", "asked", "split"),
    [
        # Twice a column with its normaliser, one rms; of more dimensions dimension 0 is no row, and rms remains.
        ((8, 6), 3, ["value", "m", "v_row", "residual_row"]),
        ((8, 3, 5), 1, ["value", "m", "v_row", "v_column", "residual_row", "residual_column"]),
        ((8,), 1, ["value", "m", "v"]),
    ],
)
def test_four_shards_are_the_whole(shape, asked, split):
    (whole,), _ = _sharded(shape, 1, Exchange())
    parts, exchanged = _sharded(shape, 4, Exchange())
    assert exchanged == asked
    for name, expected in whole.items():
        if name in split:
            assert relative_error(np.concatenate([part[name] for part in parts]), expected) <= OPERATOR
        else:
            assert all(np.array_equal(part[name], parts[0][name]) for part in parts), "the shards' copies differ"
            assert relative_error(parts[0][name], expected) <= OPERATOR


class Local(Exchange):
    """What the original does: every shard keeps its own mean."""

    def __call__(self, mean):
        return mean


@pytest.mark.parametrize("shape", [(8, 6), (8, 3, 5), (8,)])
def test_means_of_the_shard_alone_are_another_optimiser(shape):
    (whole,), _ = _sharded(shape, 1, Exchange())
    parts, _ = _sharded(shape, 4, Local())
    changed = np.concatenate([part["value"] for part in parts]) - arrays(0, [shape])[0]
    assert relative_error(changed, whole["value"] - arrays(0, [shape])[0]) > 1e-2


def halved(mean):
    return 0.5 * mean


def test_which_parameters_exchange_in_both_modes():
    results = []
    for mode in ("pynative", "graph"):
        ops.configure(mode=mode)
        values = arrays(0, [(6, 10), (6, 10), (2, 3, 4)])
        optimizer = came(parameters(values), sharded=[True, False, True], shards_mean=halved)
        run(optimizer, range(2))
        results.append(everything(optimizer))
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=1e-5, atol=1e-7)
    statics = optimizer._for_each.statics
    assert [s["rows"] for s in statics] == [True, False, False]
    assert [s["sharded"] for s in statics] == [True, False, True]
    assert [s["shards_mean"] for s in statics] == [halved, unsharded, halved]
    whole = came(parameters(values))
    run(whole, range(2))
    state = whole.state()
    ratio = {name: results[1][name].mean() / value.mean() for name, value in state.items() if name.startswith("v_")}
    assert ratio["v_column.w0"] == pytest.approx(0.5)
    assert {ratio[f"v_{name}"] for name in ("row.w0", "row.w1", "column.w1", "row.w2", "column.w2")} == {1.0}
    differing = [not np.allclose(results[1][f"m.w{i}"], state[f"m.w{i}"], rtol=1e-3) for i in range(3)]
    assert differing == [True, False, True]


def test_zero_gradients_change_nothing_but_by_decay():
    start = arrays(0, [(4, 6), (5,)])
    optimizer = came(parameters(start), weight_decay=0.0)
    for _ in range(3):
        optimizer.step([ms.Tensor(np.zeros(v.shape, np.float32)) for v in start], 0.1)
    assert all(np.array_equal(q.asnumpy(), v) for q, v in zip(optimizer.parameters, start, strict=True))
    assert all(np.isfinite(value).all() for value in optimizer.state().values())


def test_what_a_large_eps_does():
    """The original's command has eps 1e-8: with gradients far below 1e-4 vectors then move in proportion to them."""
    moved = {}
    for eps in (1e-30, 1e-8):
        for size in (1e-6, 1e-5):
            optimizer = came(parameters([np.zeros((4, 6), np.float32), np.zeros(5, np.float32)]), eps=(eps, 1e-30))
            optimizer.step([ms.Tensor(size * np.sign(g)) for g in arrays(3, [(4, 6), (5,)])], 0.1)
            moved[eps, size] = [np.abs(q.asnumpy()).mean() for q in optimizer.parameters]
    ratios = {eps: np.divide(moved[eps, 1e-5], moved[eps, 1e-6]) for eps in (1e-30, 1e-8)}
    np.testing.assert_allclose(ratios[1e-30], [1, 1], rtol=1e-3)
    np.testing.assert_allclose(ratios[1e-8], [1, 10], rtol=0.1)  # the residual normalises matrices once more


def test_tensors_of_a_bundle_share_their_messages_and_keep_their_bits():
    """Three matrices and two vectors: three messages and one; as many numbers as one by one, and the same bits."""
    shapes = [(6, 4), (6, 4), (6, 4), (5,), (5,)]
    asked: list[int] = []

    def noted(mean):
        asked.append(mean.size)
        return 0.5 * mean

    values, gradients = arrays(0, shapes), arrays(1, shapes)
    moved = {}
    for mode in ("pynative", "graph"):
        ops.configure(mode=mode)
        together = came(parameters(values), sharded=[True] * 5, shards_mean=noted if mode == "pynative" else halved)
        together.step([ms.Tensor(g) for g in gradients], 0.01)
        moved[mode] = [q.asnumpy() for q in together.parameters]
    assert asked == together.exchanged() == [15, 3, 15, 2]
    ops.configure(mode="pynative")
    for index, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        lone = came(parameters([value]), sharded=[True], shards_mean=halved)
        lone.step([ms.Tensor(gradient)], 0.01)
        np.testing.assert_array_equal(moved["pynative"][index], lone.parameters[0].asnumpy())
        np.testing.assert_allclose(moved["graph"][index], moved["pynative"][index], rtol=1e-5, atol=1e-7)
