"""Feed-forwards in pieces of tokens: values and gradients of the whole, and no hidden layer of all tokens."""

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from core import ops, ops_cpu, ops_cpu_compiled
from core.errors import UserError
from core.lora import LoRAConfig, attach
from core.presets import PRESETS
from core.transformer import layers
from core.transformer.feed_forward import ChunkedFeedForward, _Pieces
from core.transformer.kept import pieces
from core.transformer.model import CogVideoXTransformer3DModel
from tests.tolerances import relative_error

CONFIG = replace(PRESETS["tiny-1.5"].transformer, num_layers=2, text_embed_dim=24)
LORA_TARGETS = ("to_q", "ff.net.0.proj", "ff.net.2")
BATCH, TEXT, FRAMES, SIDE = 2, 6, 4, 8
ROWS = BATCH * (TEXT + FRAMES // 2 * (SIDE // 2) ** 2)  # patch_size_t and patch_size are 2: 2 * 38


def _inputs() -> tuple[ms.Tensor, ...]:
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((BATCH, FRAMES, CONFIG.in_channels, SIDE, SIDE), np.float32)
    text = rng.standard_normal((BATCH, TEXT, 24), np.float32)
    return ms.Tensor(hidden), ms.Tensor(text), ms.Tensor(np.array([10.0, 700.0], np.float32))


def _model(lora: bool = False) -> tuple[CogVideoXTransformer3DModel, list]:
    model = CogVideoXTransformer3DModel(CONFIG).initialize(3)
    if not lora:
        return model, model.trainable_params()
    parameters = attach(model, LoRAConfig(rank=2, alpha=4.0, targets=LORA_TARGETS), seed=1).parameters
    rng = np.random.default_rng(2)
    for parameter in parameters:
        parameter.set_data(ms.Tensor(rng.standard_normal(parameter.shape, np.float32)))
    return model, list(parameters)


def _gradients(chunk: int | None, recompute: tuple[Any, ...], lora: bool = False) -> list[np.ndarray]:
    model, parameters = _model(lora)
    model.recompute(*recompute)
    model.enable_forward_chunking(chunk)
    loss, gradients = ops.value_and_gradients(lambda *v: (model(*v) ** 2).mean(), parameters)(*_inputs())
    return [loss.asnumpy(), *(g.asnumpy() for g in gradients)]


def _same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert relative_error(one, other) <= 2e-6


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("recompute", [("none",), ("all",), ("keep_attention", 2)])
@pytest.mark.parametrize("mode", ["pynative", pytest.param("graph", marks=pytest.mark.slow)])
def test_pieces_have_the_gradients_of_the_whole(mode, recompute, lora):
    ops.configure(mode=mode)
    _same(_gradients(ROWS // 3, recompute, lora), _gradients(None, recompute, lora))


def test_pieces_in_graph_mode():
    """One compiled block for two, each with its own pieces: the custom backward of one must not serve the other."""
    ops.configure(mode="graph")
    _same(_gradients(ROWS // 3, ("all",)), _gradients(None, ("none",)))


def test_pieces_without_compiled_kernels():
    ops.configure(kernels="operators")
    _same(_gradients(ROWS // 3, ("all",)), _gradients(None, ("all",)))


@pytest.mark.parametrize("lora", [False, True])
def test_values_without_gradients(lora):
    model, _ = _model(lora)
    whole = model(*_inputs()).asnumpy()
    model.enable_forward_chunking(7)
    pieced = model(*_inputs()).asnumpy()
    assert relative_error(pieced, whole) <= 1e-6
    model.enable_forward_chunking(None)
    assert np.array_equal(model(*_inputs()).asnumpy(), whole)


@pytest.mark.parametrize("side", [ops_cpu, ops_cpu_compiled])
@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
def test_the_gradient_of_gelu(side, dtype):
    ops.configure()
    rng = np.random.default_rng(1)
    x = np.concatenate([3 * rng.standard_normal(500), [-40.0, -9.0, 0.0, 9.0, 40.0]])
    wide = x.astype(np.float16).astype(np.float64)
    tanh = np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))
    slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * wide**2)
    wanted = 0.5 * (1 + tanh) + 0.5 * wide * (1 - tanh**2) * slope
    got = side.gelu_tanh_gradient(ms.Tensor(wide).astype(dtype), ms.Tensor(np.full(x.shape, 2.0)).astype(dtype))
    assert got.dtype == dtype
    bound = 2e-6 if dtype == ms.float32 else 2e-3
    assert np.abs(got.astype(ms.float32).asnumpy() - 2 * wanted).max() <= 2 * bound


class _Widest:
    """The largest number of tokens whose hidden layer was made."""

    def __init__(self, monkeypatch):
        self.rows: list[int] = []

        def noted(plain):
            def noting(x):
                self.rows.append(int(np.prod(x.shape[:-1])))
                return plain(x)

            return noting

        for name in ("gelu_tanh", "gelu_tanh_again"):
            monkeypatch.setattr(ops, name, noted(getattr(ops, name)))


def test_no_hidden_layer_of_all_tokens(monkeypatch):
    widest = _Widest(monkeypatch)
    _gradients(None, ("all",))
    assert max(widest.rows) == ROWS
    widest.rows.clear()
    _gradients(ROWS // 3, ("all",))
    # Forward, again for the gradient of the block, and inside the gradient: two blocks of four pieces.
    assert widest.rows == [ROWS // 4] * 2 * 3 * 4


def test_fewer_tokens_than_a_piece_go_the_usual_way(monkeypatch):
    """With its bits; one token more than a piece and the Cell is called."""
    calls: list[int] = []
    plain = _Pieces.construct

    def noting(self, x, *tensors):
        calls.append(x.shape[0])
        return plain(self, x, *tensors)

    monkeypatch.setattr(_Pieces, "construct", noting)
    usual = _gradients(None, ("all",))
    assert all(np.array_equal(one, other) for one, other in zip(_gradients(ROWS, ("all",)), usual, strict=True))
    assert calls == []
    _gradients(ROWS - 1, ("all",))
    assert calls


@pytest.mark.parametrize(("rows", "chunk", "count"), [(8, 8, 1), (9, 8, 2), (16, 8, 2), (17, 8, 3), (3, 1, 3)])
def test_pieces_are_no_longer_than_asked(rows, chunk, count):
    assert pieces(rows, chunk) == count
    lengths = [(i + 1) * rows // count - i * rows // count for i in range(count)]
    assert sum(lengths) == rows
    assert max(lengths) <= chunk
    assert max(lengths) - min(lengths) <= 1


def test_blocks_alike_share_a_function():
    model, _ = _model()
    chunked = ChunkedFeedForward(4)
    first, second = (chunked.of(model.block(f"transformer_blocks.{i}")) for i in range(2))
    assert first is second
    with_lora, _ = _model(lora=True)
    assert chunked.of(with_lora.block("transformer_blocks.0")) is not first


def test_what_is_frozen_has_no_gradient_computed(monkeypatch):
    """Of a LoRA's base no product of columns is made."""
    from core.transformer import feed_forward

    shapes: list[tuple] = []
    plain = feed_forward._product_of_columns

    def noting(a, b):
        shapes.append((a.shape[1], b.shape[1]))
        return plain(a, b)

    monkeypatch.setattr(feed_forward, "_product_of_columns", noting)
    _gradients(ROWS // 3, ("none",), lora=True)
    assert shapes
    assert all(2 in shape for shape in shapes)


def test_half_precision_sums_in_fp32():
    """Pieces of one token each, the first with a gradient of 2048, then 63 of 1: in fp16 2048 + 1 is 2048."""
    rng = np.random.default_rng(0)
    width, rows = 8, 64
    shapes = {"ff.net.0.proj": (4 * width, width), "ff.net.2": (width, 4 * width)}
    handed: dict[str, ms.Tensor] = {}
    for name, shape in shapes.items():
        handed[name + ".weight"] = ms.Tensor(rng.standard_normal(shape) / 4).astype(ms.float16)
        handed[name + ".bias"] = ms.Tensor(rng.standard_normal(shape[0]) / 4).astype(ms.float16)
    from core.model import Handed

    block = Handed(handed, frozenset())
    names = list(handed)
    x = ms.Tensor(rng.standard_normal((1, rows, width))).astype(ms.float16)

    positions: Any = tuple(range(4))
    weights = ms.Tensor(np.array([2048.0] + [1.0] * (rows - 1), np.float32).reshape(1, rows, 1))

    def loss(of, *tensors):
        return (of(dict(zip(names, tensors, strict=True)), x).astype(ms.float32) * weights).sum()

    gradient: Any = ms.grad(lambda *t: loss(ChunkedFeedForward(1).of(block), *t), positions)(*handed.values())
    bias = gradient[names.index("ff.net.2.bias")].astype(ms.float32).asnumpy()
    assert np.abs(bias - (2048 + rows - 1)).max() <= 1
    wide = [t.astype(ms.float32) for t in handed.values()]
    x = x.astype(ms.float32)
    wanted: Any = ms.grad(lambda *t: loss(layers.feed_forward, *t), positions)(*wide)
    for found, exact in zip(gradient, wanted, strict=True):
        assert relative_error(found.astype(ms.float32).asnumpy(), exact.asnumpy()) <= 5e-3


@pytest.mark.parametrize("chunk", [0, -3])
def test_a_chunk_without_tokens(chunk):
    with pytest.raises(UserError, match=f"got {chunk}, need 1 token or more"):
        _model()[0].enable_forward_chunking(chunk)
