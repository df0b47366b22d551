"""The VAE without a reference: streamed = whole, stacked = one by one, graph = PyNative, causal, and its refusals."""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from core import ops
from core.errors import UserError
from core.presets import PRESETS
from core.vae import blocks
from core.vae.conv import causal_conv3d
from core.vae.model import AutoencoderKLCogVideoX
from core.vae.tiling import TilingConfig

TINY = PRESETS["tiny-1.5"].vae
CONFIG = replace(
    TINY,
    block_out_channels=(4, 4, 8),
    down_block_types=TINY.down_block_types[:3],
    up_block_types=TINY.up_block_types[:3],
    norm_num_groups=2,
    latent_channels=4,
)  # three levels, so 4 pixels per latent
TILING = TilingConfig(tile_height=16, tile_width=16, overlap_height=0.25, overlap_width=0.5)
ROUNDING = 1e-6  # the same operations in another order (fused, or several tiles in a batch), fp32
EXPONENTIAL = 1e-5  # MindSpore's exp on the CPU is off by up to 4e-6


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLCogVideoX:
    model = AutoencoderKLCogVideoX(CONFIG)
    model.initialize(0)
    return model


@pytest.fixture
def graph_mode():
    before = (ops._runtime.device, ops._runtime.mode, ops._runtime.jit_level)
    ops.configure(mode="graph")
    yield
    ops.configure(device=before[0], mode=before[1], jit_level=before[2])


def noise(*shape: int, seed: int = 0) -> ms.Tensor:
    return ms.Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def assert_close(a: ms.Tensor, b: ms.Tensor, tolerance: float = ROUNDING) -> None:
    x, y = a.asnumpy(), b.asnumpy()
    assert x.shape == y.shape
    assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y)


def joined(pieces: list) -> ms.Tensor:
    return ms.Tensor(np.concatenate([piece.asnumpy() for piece in pieces], 2))


def test_causal_conv_by_hand():
    """Kernel 3 in time only, on frames 1, 2, 4: the first frame is repeated before the clip."""
    x = ms.Tensor(np.array([1, 2, 4], np.float32).reshape(1, 1, 3, 1, 1))
    weight = np.zeros((1, 1, 3, 3, 3), np.float32)
    weight[0, 0, :, 1, 1] = [100, 10, 1]
    y, cache = causal_conv3d(x, ms.Tensor(weight), ms.Tensor(np.array([0.5], np.float32)), None)
    np.testing.assert_array_equal(y.asnumpy().ravel(), [111.5, 112.5, 124.5])
    np.testing.assert_array_equal(cache.asnumpy().ravel(), [2, 4])
    y, cache = causal_conv3d(x[:, :, :1], ms.Tensor(weight), ms.Tensor(np.zeros(1, np.float32)), cache)
    np.testing.assert_array_equal(y.asnumpy().ravel(), [241])
    np.testing.assert_array_equal(cache.asnumpy().ravel(), [4, 1])


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_causal_conv_in_two_chunks_equals_one(cut):
    x, weight, bias = noise(2, 3, 5, 4, 6), noise(4, 3, 3, 3, 3, seed=1), noise(4, seed=2)
    whole, _ = causal_conv3d(x, weight, bias, None)
    first, cache = causal_conv3d(x[:, :, :cut], weight, bias, None)
    second, _ = causal_conv3d(x[:, :, cut:], weight, bias, cache)
    assert_close(joined([first, second]), whole)


def test_upsampling_keeps_an_odd_first_frame():
    x = ms.Tensor(np.arange(3, dtype=np.float32).reshape(1, 1, 3, 1, 1))
    up = blocks.upsample(x, 2, 2).asnumpy()
    assert up.shape == (1, 1, 5, 2, 2)
    np.testing.assert_array_equal(up[0, 0, :, 1, 1], [0, 1, 1, 2, 2])
    np.testing.assert_array_equal(blocks.upsample(x[:, :, 1:], 2, 1).asnumpy().ravel(), [1, 1, 2, 2])
    assert blocks.upsample(x[:, :, :1], 2, 2).shape == (1, 1, 1, 2, 2)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (8, 2), (9, 3), (13, 4), (17, 5)])
def test_encoded_shape(vae, frames, latents):
    mean, std = vae.encode(noise(1, 3, frames, 8, 12))
    assert mean.shape == std.shape == (1, 4, latents, 2, 3)
    assert (std.asnumpy() > 0).all()


@pytest.mark.parametrize(("latents", "frames"), [(1, 1), (2, 8), (3, 9), (4, 16)])
def test_decoded_shape(vae, latents, frames):
    assert vae.decode(noise(1, 4, latents, 2, 3)).shape == (1, 3, frames, 8, 12)


def test_std_is_clamped():
    """log variance is limited to [-30, 20] before the exponential."""
    model = AutoencoderKLCogVideoX(CONFIG)
    model.initialize(0)
    weight = "encoder.conv_out.conv.weight"
    model.assign(weight, np.zeros(model.table[weight].shape, np.float32))
    model.assign("encoder.conv_out.conv.bias", np.array([7] * 4 + [99, -99, 0, 2], np.float32))
    mean, std = model.encode(noise(1, 3, 1, 4, 4))
    np.testing.assert_array_equal(mean.asnumpy().ravel(), [7] * 4)
    np.testing.assert_allclose(std.asnumpy().ravel(), np.exp([10, -15, 0, 1]), rtol=EXPONENTIAL)


def test_later_frames_do_not_change_earlier_latents(vae):
    video = noise(1, 3, 17, 8, 8)
    np.testing.assert_array_equal(vae.encode(video)[0].asnumpy()[:, :, :3], vae.encode(video[:, :, :9])[0].asnumpy())


@pytest.mark.parametrize("tiling", [None, TILING, replace(TILING, vectorised=True)])
def test_streamed_equals_whole(vae, tiling):
    video = noise(1, 3, 17, 16, 20)
    mean, std = vae.encode(video, tiling)
    pieces = [video[:, :, a:b] for a, b in [(0, 2), (2, 12), (12, 17)]]
    streamed = list(vae.encode_chunks(pieces, 17, tiling))
    assert [m.shape[2] for m, _ in streamed] == [3, 2]
    np.testing.assert_array_equal(joined([m for m, _ in streamed]).asnumpy(), mean.asnumpy())
    np.testing.assert_array_equal(joined([s for _, s in streamed]).asnumpy(), std.asnumpy())
    frames = list(vae.decode_chunks(mean, tiling))
    assert [f.shape[2] for f in frames] == [9, 8]
    np.testing.assert_array_equal(joined(frames).asnumpy(), vae.decode(mean, tiling).asnumpy())


def test_two_streams_do_not_disturb_each_other(vae):
    """The cache belongs to the call, not to the model."""
    one, two = noise(1, 4, 5, 2, 2), noise(1, 4, 5, 2, 2, seed=1)
    pairs = list(zip(vae.decode_chunks(one), vae.decode_chunks(two), strict=True))
    np.testing.assert_array_equal(joined([a for a, _ in pairs]).asnumpy(), vae.decode(one).asnumpy())
    np.testing.assert_array_equal(joined([b for _, b in pairs]).asnumpy(), vae.decode(two).asnumpy())


def test_the_cache_matters(vae):
    z = noise(1, 4, 4, 2, 2)
    first, cache = vae.decode_chunk(z[:, :, :2], {})
    assert not np.allclose(
        vae.decode_chunk(z[:, :, 2:], cache)[0].asnumpy(), vae.decode_chunk(z[:, :, 2:], {})[0].asnumpy()
    )
    np.testing.assert_array_equal(first.asnumpy(), vae.decode(z).asnumpy()[:, :, :8])


def test_stacked_tiles_equal_tiles_one_by_one(vae):
    stacked = replace(TILING, vectorised=True, max_batch=3)
    video = noise(2, 3, 5, 28, 20)
    for a, b in zip(vae.encode(video, stacked), vae.encode(video, TILING), strict=True):
        assert_close(a, b)
    latents = noise(2, 4, 1, 7, 5)
    assert_close(vae.decode(latents, stacked), vae.decode(latents, TILING))


def test_tiling_changes_a_large_clip_only(vae):
    small, large = noise(1, 4, 1, 4, 4), noise(1, 4, 1, 6, 6)
    np.testing.assert_array_equal(vae.decode(small, TILING).asnumpy(), vae.decode(small).asnumpy())
    assert not np.allclose(vae.decode(large, TILING).asnumpy(), vae.decode(large).asnumpy())


def test_graph_equals_pynative(vae, graph_mode):
    video = noise(1, 3, 17, 8, 8)
    graph = vae.encode(video)
    decoded = vae.decode(graph[0])
    ops.configure(mode="pynative")
    for a, b in zip(graph, vae.encode(video), strict=True):
        assert_close(a, b, 3 * ROUNDING)
    assert_close(decoded, vae.decode(graph[0]), 3 * ROUNDING)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 10, 16, 16), r"video: got 10 frames, need 4k or 4k \+ 1; .*9 or 12"),
        ((1, 3, 9, 20, 16), "video: got 20x16 pixels, need multiples of 8; .*16x16"),
        ((1, 4, 9, 16, 16), r"video: got shape \[1, 4, 9, 16, 16\], need \[batch, 3, frames, height, width\]"),
        ((3, 9, 16, 16), r"video: got shape \[3, 9, 16, 16\], need \[batch, 3,"),
    ],
)
def test_videos_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(UserError, match=message) as caught:
        AutoencoderKLCogVideoX(TINY).encode(ms.Tensor(np.zeros(shape, np.float32)))
    assert "\n" not in str(caught.value)


def test_latents_that_do_not_fit_are_refused(vae):
    with pytest.raises(UserError, match=r"latents: got shape \[1, 3, 1, 2, 2\], need \[batch, 4, "):
        vae.decode(noise(1, 3, 1, 2, 2))
    with pytest.raises(UserError, match="latents: got shape"):
        vae.decode_chunks(noise(1, 3, 1, 2, 2))


@pytest.mark.parametrize(
    ("given", "message"), [(8, "got 8, need num_frames = 9"), (10, "got more than num_frames = 9")]
)
def test_a_stream_of_another_length_is_refused(vae, given, message):
    pieces = [noise(1, 3, 1, 4, 4)] * given
    with pytest.raises(UserError, match=message):
        list(vae.encode_chunks(pieces, 9))
