"""The T5 encoder: by hand, against plain NumPy, and equivalences that need no reference."""

from __future__ import annotations

import math
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from core import compiling, ops
from core.configs import T5Config
from core.errors import UserError
from core.presets import PRESETS
from core.text import t5
from core.text.parameters import ALIASES, BIAS_TABLE, parameter_table

TINY = replace(PRESETS["tiny-1.5"].text, vocab_size=32, d_model=12, d_kv=5, d_ff=20, num_heads=2, num_layers=2)
HAND = replace(TINY, vocab_size=2, d_model=2, d_kv=1, d_ff=2, num_heads=1, num_layers=1, feed_forward_proj="relu")


@pytest.fixture
def graph_mode():
    ops.configure(mode="graph")
    yield
    ops.configure()


def _random(config: T5Config, seed: int = 3) -> t5.T5EncoderModel:
    model = t5.T5EncoderModel(config).initialize(seed)
    rng = np.random.default_rng(seed)
    for name, spec in model.table.items():
        if name.endswith("layer_norm.weight"):
            model.assign(name, rng.uniform(0.5, 1.5, spec.shape).astype(np.float32))
    model.assign(
        f"encoder.block.0.{BIAS_TABLE}", rng.standard_normal(model.table[f"encoder.block.0.{BIAS_TABLE}"].shape)
    )
    return model


def _ids(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, TINY.vocab_size, (rows, length)).astype(np.int32)


def _encode(model: t5.T5EncoderModel, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    return model.construct(ms.Tensor(ids), None if mask is None else ms.Tensor(mask)).asnumpy()


def _hand_model(own_place: float) -> t5.T5EncoderModel:
    """Attention adds the mean (or the own) first feature of the normed tokens to the first feature; no feed-forward."""
    model = t5.T5EncoderModel(HAND)
    for name, spec in model.table.items():
        model.assign(name, np.full(spec.shape, 1.0 if name.endswith("layer_norm.weight") else 0.0, np.float32))
    model.assign("shared.weight", np.array([[3, 4], [0, 5]], np.float32))
    model.assign("encoder.block.0.layer.0.SelfAttention.v.weight", np.array([[1, 0]], np.float32))
    model.assign("encoder.block.0.layer.0.SelfAttention.o.weight", np.array([[1], [0]], np.float32))
    table = np.zeros((32, 1), np.float32)
    table[0] = own_place
    model.assign(f"encoder.block.0.{BIAS_TABLE}", table)
    return model


def test_by_hand_equal_weights():
    # norms of (3, 4) and (0, 5): (0.848528, 1.131371), (0, 1.414214); both tokens see the mean 0.424264
    out = _encode(_hand_model(0.0), np.array([[0, 1]], np.int32))
    np.testing.assert_allclose(out, [[[0.919690, 1.074324], [0.119570, 1.409149]]], rtol=1e-5)


def test_by_hand_position_bias_prefers_the_own_place():
    # token 0 adds its own 0.848528 and becomes (3.848528, 4): rms 3.924999
    out = _encode(_hand_model(50.0), np.array([[0, 1]], np.int32))
    np.testing.assert_allclose(out, [[[0.980517, 1.019109], [0.0, 1.414213]]], rtol=1e-5, atol=1e-6)


def test_by_hand_hidden_token_is_not_seen():
    out = _encode(_hand_model(50.0), np.array([[0, 1]], np.int32), np.array([[0, 1]], np.uint8))
    np.testing.assert_allclose(out, [[[0.848528, 1.131371], [0.0, 1.414213]]], rtol=1e-5, atol=1e-6)


def test_buckets_by_hand():
    # 8 buckets: 4 for each direction, distances 0 and 1 exact, 2..5 in one, 6 and more in the last (up to 16)
    buckets = t5.position_buckets(8, 8, 16)
    assert buckets[0].tolist() == [0, 5, 6, 6, 6, 6, 7, 7]
    assert buckets[:, 0].tolist() == [0, 1, 2, 2, 2, 2, 3, 3]
    far = t5.position_buckets(200, 32, 128)
    assert far[0, 128] == 31
    assert far[0, 199] == 31
    assert far[199, 0] == 15
    assert far[0, 7] == 23
    assert far[0, 8] == 24


def _numpy_encoder(model: t5.T5EncoderModel, ids: np.ndarray) -> np.ndarray:
    w = {name: model._params[name].asnumpy().astype(np.float64) for name in model.table}
    config, (rows, length) = model.config, ids.shape

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.layer_norm_epsilon) * w[name]

    def heads(x):
        return x.reshape(rows, length, config.num_heads, -1)

    bias = w[f"encoder.block.0.{BIAS_TABLE}"][t5.position_buckets(length, 32, 128)]
    x = w["shared.weight"][ids]
    for i in range(config.num_layers):
        name = f"encoder.block.{i}.layer."
        h = norm(x, f"{name}0.layer_norm.weight")
        q, k, v = (heads(h @ w[f"{name}0.SelfAttention.{part}.weight"].T) for part in "qkv")
        scores = np.einsum("blnk,bmnk->blmn", q, k) + bias
        weights = np.exp(scores - scores.max(2, keepdims=True))
        mixed = np.einsum("blmn,bmnk->blnk", weights / weights.sum(2, keepdims=True), v).reshape(rows, length, -1)
        x = x + mixed @ w[f"{name}0.SelfAttention.o.weight"].T
        h, ff = norm(x, f"{name}1.layer_norm.weight"), f"{name}1.DenseReluDense."
        if config.feed_forward_proj == "relu":
            h = np.maximum(h @ w[ff + "wi.weight"].T, 0)
        else:
            gate = h @ w[ff + "wi_0.weight"].T
            gelu = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
            h = gelu * (h @ w[ff + "wi_1.weight"].T)
        x = x + h @ w[ff + "wo.weight"].T
    return norm(x, "encoder.final_layer_norm.weight")


@pytest.mark.parametrize("projection", ["gated-gelu", "relu"])
def test_equals_plain_numpy(projection):
    model = _random(replace(TINY, feed_forward_proj=projection))
    ids = _ids(2, 9)
    np.testing.assert_allclose(_encode(model, ids), _numpy_encoder(model, ids), rtol=1e-4, atol=2e-5)


def test_graph_equals_pynative(graph_mode):
    model, ids = _random(TINY), _ids(2, 7)
    graph = _encode(model, ids)
    ops.configure(mode="pynative")
    np.testing.assert_allclose(graph, _encode(model, ids), rtol=1e-5, atol=1e-6)


def test_all_blocks_share_one_graph(graph_mode, monkeypatch):
    built = []
    flat = compiling._flat
    monkeypatch.setattr(compiling, "_flat", lambda *a: built.append(a[1]) or flat(*a))
    monkeypatch.setattr(t5, "_block", ops.compiled(t5.block))
    _encode(_random(replace(TINY, num_layers=4)), _ids(1, 5))
    assert len(built) == 1
    assert BIAS_TABLE not in built[0]


def test_mask_of_ones_changes_nothing_and_hidden_padding_equals_a_shorter_text():
    model, ids = _random(TINY), _ids(2, 8)
    whole = _encode(model, ids)
    np.testing.assert_array_equal(_encode(model, ids, np.ones((2, 8), np.uint8)), whole)
    mask = np.ones((2, 8), np.uint8)
    mask[:, 5:] = 0
    np.testing.assert_allclose(_encode(model, ids, mask)[:, :5], _encode(model, ids[:, :5]), rtol=1e-4, atol=1e-5)
    assert np.abs(whole[:, :5] - _encode(model, ids[:, :5])).max() > 1e-2, "without a mask padding must be seen"


def test_rows_are_independent():
    model, ids = _random(TINY), _ids(3, 6)
    alone = np.concatenate([_encode(model, ids[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(_encode(model, ids), alone, rtol=1e-5, atol=1e-6)


def test_half_precision_survives_what_overflows_it():
    full = _random(replace(TINY, num_layers=1))
    up = {n: full._params[n].asnumpy() * (1500.0 if "wi_" in n else 1.0) for n in full.table}
    half = t5.T5EncoderModel(full.config, ms.float16)
    for name, value in up.items():
        full.assign(name, value)
        half.assign(name, value)
    ids = _ids(1, 6)
    out = _encode(half, ids)
    assert out.dtype == np.float16
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, _encode(full, ids), atol=2e-2)


def test_published_names_and_size_of_the_xxl_encoder():
    table = parameter_table(PRESETS["5b"].text)
    assert sum(spec.size for spec in table.values()) == 4_762_310_656
    assert table["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"].shape == (10240, 4096)
    assert table[f"encoder.block.0.{BIAS_TABLE}"].shape == (32, 64)
    assert [n for n in table if "relative" in n] == [f"encoder.block.0.{BIAS_TABLE}"]
    assert all(alias not in table and name in table for alias, name in ALIASES.items())


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        (np.zeros(4, np.int32), None, "batch axis"),
        (np.zeros((1, 4), np.int32), np.ones((1, 3), np.uint8), "attention_mask"),
        (np.full((1, 4), 32, np.int32), None, "values from 32 to 32, need values from 0 to 31"),
    ],
)
def test_refuses_inputs_that_do_not_fit(ids, mask, words):
    with pytest.raises(UserError, match=words):
        _encode(_random(TINY), ids, mask)
