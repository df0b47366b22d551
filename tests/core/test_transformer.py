"""The transformer: by hand, equivalences, user errors. Parity is in test_golden and tests/parity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from core import ops, ops_cpu, ops_cpu_compiled
from core.errors import UserError
from core.lora import LoRAConfig, attach
from core.presets import PRESETS
from core.transformer import layers, rope
from core.transformer.kept import kept_bytes
from core.transformer.model import CogVideoXTransformer3DModel
from tests.tolerances import OPERATOR_GRADIENT, relative_error

CONFIG = replace(PRESETS["tiny-1.5"].transformer, num_layers=2, text_embed_dim=24, max_text_seq_length=6)


def _model(config=CONFIG):
    model = CogVideoXTransformer3DModel(config)
    rng = np.random.default_rng(0)
    for name, spec in model.table.items():
        model.assign(name, (0.1 * rng.standard_normal(spec.shape)).astype(np.float32))
    return model


def _inputs(config=CONFIG, batch=2, frames=4, height=6, width=8, length=6) -> Any:
    rng = np.random.default_rng(1)
    return (
        ms.Tensor(rng.standard_normal((batch, frames, config.in_channels, height, width), np.float32)),
        ms.Tensor(rng.standard_normal((batch, length, config.text_embed_dim), np.float32)),
        ms.Tensor(np.array([700, 3][:batch])),
    )


def test_patchify_by_hand():
    x = np.arange(2 * 3 * 2 * 4, dtype=np.float32).reshape(1, 2, 3, 2, 4)
    patches = layers.patchify(ms.Tensor(x), 2, 2).asnumpy()
    # One token for each of the two patches along the width: channel, then time, then rows and columns.
    axes = [(c, t, i, j) for c in range(3) for t in range(2) for i in range(2) for j in range(2)]
    expected = [[x[0, t, c, i, 2 * w + j] for c, t, i, j in axes] for w in range(2)]
    assert np.array_equal(patches[0], expected)


@pytest.mark.parametrize("patch_t", [1, 2])
def test_unpatchify_inverts_patchify(patch_t):
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 6, 8), np.float32)
    patches = layers.patchify(ms.Tensor(x), 2, patch_t)
    assert np.array_equal(layers.unpatchify(patches, (4 // patch_t, 3, 4), 3, 2, patch_t).asnumpy(), x)


def test_sinusoid_by_hand():
    out = layers.sinusoid(ms.Tensor([10]), 4, flip_sin_to_cos=True, freq_shift=0).asnumpy()
    assert np.allclose(out, [[np.cos(10), np.cos(0.1), np.sin(10), np.sin(0.1)]], atol=1e-6)


def test_rotary_table_by_hand():
    cos, sin = rope.rotary_table(16, np.array([0, 2]), np.array([1]), np.array([0, 3]))
    assert cos.shape == sin.shape == (4, 16)
    # Last token: time 2 (4 features), height 1 (6), width 3 (6); each frequency stands twice.
    low = 10000.0 ** np.array([0, -2 / 4])
    high = 10000.0 ** np.array([0, -2 / 6, -4 / 6])
    angles = np.repeat(np.concatenate([2 * low, 1 * high, 3 * high]), 2)
    assert np.allclose(cos[3], np.cos(angles), atol=1e-6)
    assert np.allclose(sin[3], np.sin(angles), atol=1e-6)


def test_text_is_not_rotated():
    cos, sin = rope.joint_rotary_table(CONFIG, 5, 2, 3, 4)
    assert cos.shape == (5 + 24, CONFIG.attention_head_dim)
    assert np.all(cos[:5] == 1)
    assert np.all(sin[:5] == 0)


@pytest.mark.parametrize(
    ("grid", "region"),
    [((30, 45), ((0, 0), (30, 45))), ((48, 85), ((2, 0), (27, 45))), ((40, 20), ((0, 15), (30, 30)))],
)
def test_resize_crop_region(grid: tuple[int, int], region):
    assert rope.resize_crop_region(*grid, 30, 45) == region


def test_1_5_positions_go_on_beyond_the_trained_size():
    small = replace(CONFIG, sample_height=4, sample_width=4)
    for given, expected in zip(rope.rotary_positions(small, 2, 9, 7), (2, 9, 7), strict=True):
        assert np.array_equal(given, np.arange(expected))


@pytest.mark.parametrize("preset", ["tiny-1.0-2b", "tiny-1.0-5b", "tiny-1.5"])
def test_graph_equals_pynative(preset):
    config = replace(PRESETS[preset].transformer, num_layers=2, text_embed_dim=24)
    model, values = _model(config), _inputs(config)
    results = {}
    for mode in ("pynative", "graph"):
        ops.configure(mode=mode)
        fresh = CogVideoXTransformer3DModel(config)
        for name in model.table:
            fresh.assign(name, model.parameters_dict()[name].asnumpy())
        results[mode] = fresh(*values).asnumpy()
    assert relative_error(results["graph"], results["pynative"]) <= 1e-6


def test_a_sample_does_not_see_the_rest_of_its_batch():
    model = _model()
    hidden, text, timestep = _inputs()
    both = model(hidden, text, timestep).asnumpy()
    alone = model(hidden[1:], text[1:], timestep[1:]).asnumpy()
    assert relative_error(both[1:], alone) <= 1e-6


def _loss_and_gradients(model, values):
    grad = ops.value_and_gradients(lambda *v: (model(*v) ** 2).mean(), model.trainable_params())
    loss, gradients = grad(*values)
    return [loss.asnumpy(), *(g.asnumpy() for g in gradients)]


@pytest.mark.parametrize(
    ("mode", "rotary"), [("pynative", True), ("pynative", False), pytest.param("graph", True, marks=pytest.mark.slow)]
)
def test_recomputed_gradients_are_the_same(mode, rotary):
    ops.configure(mode=mode)
    config = CONFIG if rotary else replace(CONFIG, use_rotary_positional_embeddings=False, num_layers=1)
    results = []
    choices: Any = [("none",), ("all",), ("keep_attention", 2 if rotary else 1)]
    for settings in choices:
        model = _model(config)
        model.recompute(*settings)
        results.append(_loss_and_gradients(model, _inputs(config)))
    # Without rotation the gradient of norm_k.bias is zero but for rounding: softmax does not see a shift.
    floor = 1e-9 * max(np.linalg.norm(kept) for kept in results[0])
    for others in results[1:]:
        for kept, again in zip(results[0], others, strict=True):
            assert np.linalg.norm(again - kept) <= max(1e-6 * np.linalg.norm(kept), floor)


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        (("none",), 2),
        ((False,), 2),
        (("all",), 4),
        ((True,), 4),
        (("all", 2), 3),
        (("keep_attention",), 2),
        (("keep_attention", 2), 2),
    ],
)
def test_how_often_attention_runs(settings, runs, monkeypatch):
    """Two blocks, one forward and one backward pass."""
    calls = []
    plain = ops_cpu.attention

    def counting(*arguments):
        calls.append(arguments)
        return plain(*arguments)

    for side in (ops_cpu, ops_cpu_compiled):
        monkeypatch.setattr(side, "attention", counting)
    model = _model()
    model.recompute(*settings)
    _loss_and_gradients(model, _inputs())
    assert len(calls) == runs


def test_kept_attention_with_a_lora():
    gradients = []
    for mode in ("none", "keep_attention"):
        model = _model()
        lora = attach(model, LoRAConfig(rank=2, alpha=4.0, targets=("to_q", "to_out.0")), seed=1)
        rng = np.random.default_rng(2)
        for parameter in lora.parameters:
            parameter.set_data(ms.Tensor(rng.standard_normal(parameter.shape, np.float32)))
        model.recompute(mode)
        gradients.append(_loss_and_gradients(model, _inputs()))
    assert len(gradients[0]) == 1 + 2 * 2 * CONFIG.num_layers
    for kept, again in zip(*gradients, strict=True):
        assert relative_error(again, kept) <= 1e-6


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
def test_kept_bytes_are_those_of_the_tensors(dtype):
    model = _model()
    values: Any = [
        ms.Tensor(np.ones(s, np.float32)).astype(dtype) for s in ((2, 9, CONFIG.inner_dim), (2, 6, CONFIG.inner_dim))
    ]
    temb = ms.Tensor(np.ones((2, CONFIG.time_embed_dim), np.float32)).astype(dtype)
    p = {name: value.astype(dtype) for name, value in model.block("transformer_blocks.0").items()}
    hidden, encoder, *kept = layers.block_keeping(
        p, values[0], values[1], temb, None, None, num_heads=CONFIG.num_attention_heads, eps=CONFIG.norm_eps
    )
    size = {"batch": 2, "tokens": 15, "itemsize": hidden.itemsize}
    # A block's inputs have the shapes of its outputs.
    inputs = sum(t.size * t.itemsize for t in (hidden, encoder))
    assert kept_bytes(CONFIG, "all", **size) == inputs
    assert kept_bytes(CONFIG, "keep_attention", **size) == inputs + sum(t.size * t.itemsize for t in kept)
    heads = CONFIG.num_attention_heads
    more = kept_bytes(CONFIG, "keep_attention", **size, device="Ascend") - kept_bytes(CONFIG, "keep_attention", **size)
    assert more == 2 * (2 * heads * 15 * 8) * 4


@pytest.mark.parametrize(
    ("settings", "words"), [(("some",), "got 'some', need one of none, all"), (("all", 0), "every 0")]
)
def test_recompute_settings_that_do_not_exist(settings, words):
    with pytest.raises(UserError, match=words):
        _model().recompute(*settings)


def test_the_default_ofs_is_two():
    config = replace(CONFIG, in_channels=32, ofs_embed_dim=64)
    model, values = _model(config), _inputs(config)
    default = model(*values).asnumpy()
    assert np.array_equal(default, model(*values, ms.Tensor([2.0])).asnumpy())
    assert not np.array_equal(default, model(*values, ms.Tensor([1.0])).asnumpy())


def test_initial_values_depend_on_seed_and_name_only():
    one, same, other = (CogVideoXTransformer3DModel(CONFIG).initialize(seed) for seed in (1, 1, 2))
    name = "transformer_blocks.1.ff.net.0.proj.weight"
    values = [m.parameters_dict()[name].asnumpy() for m in (one, same, other)]
    assert np.array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])
    bound = CONFIG.inner_dim**-0.5
    assert np.abs(values[0]).max() <= bound
    assert np.abs(values[0]).max() > 0.9 * bound


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"frames": 3}, "got 3 latent frames, need a multiple of patch_size_t 2"),
        ({"height": 5}, "got 5x8 latents, need multiples of 2"),
    ],
)
def test_shapes_that_do_not_fit(shapes, words):
    with pytest.raises(UserError, match=words):
        _model()(*_inputs(**shapes))


def test_wrong_channels_and_width():
    model = _model()
    hidden, text, timestep = _inputs()
    with pytest.raises(UserError, match=r"need \[B, F, 16, H, W\]"):
        model(hidden[:, :, :4], text, timestep)
    with pytest.raises(UserError, match=r"need \[B, L, 24\]"):
        model(hidden, text[..., :8], timestep)


def test_learned_positions_know_one_size():
    config = replace(
        PRESETS["tiny-1.0-5b"].transformer, num_layers=1, text_embed_dim=24, use_learned_positional_embeddings=True
    )
    with pytest.raises(UserError, match="this checkpoint works at its trained size only"):
        _model(config)(*_inputs(config))


@pytest.mark.parametrize(
    "recompute",
    [pytest.param("none", marks=pytest.mark.slow), pytest.param("all", marks=pytest.mark.slow), "keep_attention"],
)
def test_attention_in_chunks_gives_the_same_gradients(recompute, monkeypatch):
    """Two blocks, each with its own chunked attention: the custom backward of one must not serve the other."""
    ops.configure(mode="graph", kernels="operators")
    gradients = []
    for limit in (ops_cpu.CHUNK_BYTES, 4 * 2 * 4 * 30 * 8):
        monkeypatch.setattr(ops_cpu, "CHUNK_BYTES", limit)
        model, values = _model(), _inputs(height=8, width=8)
        model.recompute(recompute)
        grad = ops.value_and_gradients(lambda *v, m=model: (m(*v) ** 2).mean(), model.trainable_params())
        gradients.append([g.asnumpy() for g in grad(*values)[1]])
    for whole, chunked in zip(*gradients, strict=True):
        assert relative_error(chunked, whole) <= OPERATOR_GRADIENT


def test_handing_out_a_block_asks_no_parameter(monkeypatch):
    """A parameter's name, type or ``requires_grad`` waits for all pending work, once a parameter and block."""
    model = CogVideoXTransformer3DModel(PRESETS["tiny-1.5"].transformer).initialize(0)

    def waits(parameter):
        raise AssertionError("this waits until all pending work is done")

    for name in ("param_info", "dtype", "name", "requires_grad"):
        monkeypatch.setattr(ms.Parameter, name, property(waits))
    assert model.block("transformer_blocks.0")


def test_pynative_gets_the_parameter_and_a_graph_a_view_of_it():
    model = CogVideoXTransformer3DModel(CONFIG).initialize(0)
    own = model.parameters_dict()["transformer_blocks.0.attn1.to_q.weight"]
    ops.configure(mode="pynative")
    assert model.block("transformer_blocks.0")["attn1.to_q.weight"] is own
    ops.configure(mode="graph")
    view = model.block("transformer_blocks.0")["attn1.to_q.weight"]
    assert view is not own
    assert not isinstance(view, ms.Parameter)
    assert np.array_equal(view.asnumpy(), own.asnumpy())
