"""FLOP formulas: by hand, against published figures, and against what the models really ask of ``core.ops``."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from bench import flops
from bench.flops import Product, Size
from bench.flops_vae import vae_decode, vae_encode
from core import ops
from core.presets import PRESETS
from core.text.t5 import T5EncoderModel
from core.transformer.model import CogVideoXTransformer3DModel
from core.vae.model import AutoencoderKLCogVideoX
from core.vae.tiling import TilingConfig

SMALL = replace(
    PRESETS["tiny-1.5"].transformer,
    num_layers=3, text_embed_dim=24, max_text_seq_length=6, num_attention_heads=2, attention_head_dim=16,
    time_embed_dim=8,
)  # fmt: skip
SIZE = Size(batch=2, frames=4, height=4, width=6, text_tokens=6)  # 2 x 2 x 3 = 12 video tokens a sample
VAE = replace(
    PRESETS["tiny-1.5"].vae,
    block_out_channels=(4, 4, 8), norm_num_groups=2, latent_channels=4,
    down_block_types=PRESETS["tiny-1.5"].vae.down_block_types[:3],
    up_block_types=PRESETS["tiny-1.5"].vae.up_block_types[:3],
)  # fmt: skip


class Counter:
    """Operations of the calls that reach the seam, by kind; results are the real ones."""

    def __init__(self, monkeypatch):
        self.sums = {"linear": 0, "attention": 0, "convolution": 0}
        convolutions = ("conv2d", "conv3d", "conv3d_added", "causal_conv3d", "downsampled_conv3d")
        convolutions += ("upsampled_conv3d", "norm_conv3d")
        for name in ("linear", "attention", "attention_keeping", *convolutions):
            monkeypatch.setattr(ops, name, self._counting(getattr(ops, name), getattr(self, f"_{name}")))

    def _counting(self, real, count):
        def call(*arguments, **options):
            result = real(*arguments, **options)
            kind, operations = count(result, *arguments)
            self.sums[kind] += operations
            return result

        return call

    def _linear(self, result, x, weight, bias=None):
        return "linear", 2 * result.size * weight.shape[1]

    def _attention(self, result, q, k, v):
        batch, heads, length, size = q.shape
        return "attention", 4 * batch * heads * length * k.shape[2] * size

    def _attention_keeping(self, result, q, k, v):
        return self._attention(result, q, k, v)

    def _conv2d(self, result, x, weight, *rest):
        return "convolution", 2 * result.size * prod(weight.shape[1:])

    def _conv3d(self, result, x, weight, *rest):
        return self._conv2d(result, x, weight)

    def _conv3d_added(self, result, x, weight, *rest):
        return self._conv2d(result, x, weight)

    def _causal_conv3d(self, result, x, cache, weight, bias):
        return self._conv2d(result[0], x, weight)

    def _downsampled_conv3d(self, result, x, time, weight, bias):
        return self._conv2d(result, x, weight)

    def _upsampled_conv3d(self, result, x, time, weight, bias):
        return self._conv2d(result, x, weight)

    def _norm_conv3d(self, result, x, groups, norm_weight, norm_bias, eps, scale, shift, cache, weight, *rest):
        return self._conv2d(result[0], x, weight)

    @property
    def found(self) -> dict[str, int]:
        return {kind: value for kind, value in self.sums.items() if value}


def noise(*shape: int) -> Any:
    return ms.Tensor(np.random.default_rng(0).standard_normal(shape, np.float32))


def run_transformer(config, size, mode: flops.Recompute = "none", every=1, gradient=False):
    model = CogVideoXTransformer3DModel(config).initialize(0)
    model.recompute(mode, every)
    inputs = (
        noise(size.batch, size.frames, config.in_channels, size.height, size.width),
        noise(size.batch, size.text_tokens, config.text_embed_dim),
        ms.Tensor(np.full(size.batch, 500)),
    )
    if gradient:
        ops.value_and_gradients(lambda *x: model(*x).sum(), model.trainable_params())(*inputs)
    else:
        model(*inputs)


def test_a_product_by_hand():
    assert Product(name="x", kind="linear", rows=2, inner=3, columns=5, times=7).flops == 2 * 2 * 3 * 5 * 7


def test_one_block_by_hand():
    """18 tokens (12 video, 6 text) of width 32 (2 heads of 16), batch 2, time embedding 8 wide."""
    rows = 2 * 18
    expected = {
        "linear": 2 * (2 * 2 * 8 * 192)  # two modulations
        + 4 * (2 * rows * 32 * 32)  # q, k, v, out
        + 2 * (2 * rows * 32 * 128),  # feed-forward, 4 times as wide
        "attention": 2 * 2 * (2 * 18 * 16 * 18) * 2,  # batch, heads, one product, scores and values
    }
    assert flops.by_kind(flops.transformer_block(SMALL, SIZE)) == expected


def test_the_published_cost_of_cogvideox_1_5():
    """facts/cogvideox.md 2.6: 1.479 PFLOP at 81 frames (226 text tokens), 1.259 at 77 frames and 224 tokens."""
    config = PRESETS["1.5-5b"].transformer
    assert flops.published_forward(config, 45_106) == pytest.approx(1.479e15, rel=3e-4)
    assert flops.published_forward(config, 41_024) == pytest.approx(1.259e15, rel=3e-4)
    size = Size(batch=1, frames=22, height=96, width=170, text_tokens=226)
    assert size.video_tokens(config) == 11 * 48 * 85 == 44_880
    whole, blocks = flops.total(flops.transformer(config, size)), flops.published_forward(config, 45_106)
    assert 0 < whole - blocks < 0.001 * blocks
    attention = flops.by_kind(flops.transformer(config, size))["attention"]
    assert attention / whole == pytest.approx(0.71, abs=0.005)


def test_the_training_step_of_the_original():
    """3.78 PFLOP without recomputation, 5.04 with all of it (facts 2.6); flash attention's scores come on top."""
    config = PRESETS["1.5-5b"].transformer
    size = Size(batch=1, frames=20, height=96, width=170, text_tokens=224)
    plain = flops.training_step(config, size, scores_again=False)
    assert plain.model == plain.hardware == 3 * plain.forward
    assert plain.model == pytest.approx(3.78e15, rel=2e-3)
    sparing = flops.training_step(config, size, recompute="all", scores_again=False)
    assert sparing.model == plain.model
    assert sparing.hardware == pytest.approx(5.04e15, rel=2e-3)
    flash = flops.training_step(config, size)
    scores = 42 * 48 * 2 * 41_024**2 * 64
    assert flash.hardware - flash.model == scores


def test_recompute_modes_by_hand():
    block = flops.by_kind(flops.transformer_block(SMALL, SIZE))
    base = flops.training_step(SMALL, SIZE, scores_again=False)

    def extra(**options):
        return flops.training_step(SMALL, SIZE, scores_again=False, **options).hardware - base.hardware

    assert extra(recompute="all") == 3 * sum(block.values())
    assert extra(recompute="all", recompute_every=2) == 2 * sum(block.values())  # blocks 0 and 2
    assert extra(recompute="keep_attention") == 3 * (block["linear"] + block["attention"] // 2)
    twice = flops.training_step(SMALL, SIZE, micro_batches=2, scores_again=False)
    assert (twice.forward, twice.model, twice.hardware) == (2 * base.forward, 2 * base.model, 2 * base.hardware)


def test_feed_forwards_in_pieces_by_hand():
    """The first product of each block once more, of a LoRA on it likewise."""
    rows, products = 2 * 18, ["ff.net.0.proj", "ff.net.2"]
    for lora, again in (({}, 0), ({"lora_rank": 2, "lora_targets": products}, 2 * rows * 2 * (32 + 128))):
        whole = flops.training_step(SMALL, SIZE, recompute="all", **lora)
        pieces = flops.training_step(SMALL, SIZE, recompute="all", in_pieces=True, **lora)
        assert pieces.hardware - whole.hardware == 3 * (2 * rows * 32 * 128 + again)
        assert (pieces.forward, pieces.model) == (whole.forward, whole.model)


def test_a_norm_before_the_step_doubles_what_is_executed():
    once, twice = (flops.training_step(SMALL, SIZE, recompute="all", norm_first=first) for first in (False, True))
    assert (twice.forward, twice.model, twice.hardware) == (once.forward, once.model, 2 * once.hardware)


def test_lora_by_hand():
    """Rank 2 on to_q only: forward A and B; backward through frozen layers once, twice for A, B and attention."""
    step = flops.training_step(SMALL, SIZE, lora_rank=2, lora_targets=["to_q"], scores_again=False)
    rows = 2 * 18
    added = 3 * 2 * (2 * rows * 32 * 2)
    base = flops.transformer(SMALL, SIZE)
    assert step.forward == flops.total(base) + added
    through = 3 * (4 * (2 * rows * 32 * 32) + 2 * (2 * rows * 32 * 128)) + 2 * (2 * 12) * 32 * (16 * 8)
    attention = flops.by_kind(base)["attention"]
    assert step.model == step.forward + through + 2 * attention + 2 * added


@pytest.mark.parametrize("preset", ["tiny-1.5", "tiny-1.0-2b", "tiny-1.0-5b"])
def test_a_counted_transformer(preset, monkeypatch):
    config = replace(PRESETS[preset].transformer, num_layers=2, text_embed_dim=24)
    counter = Counter(monkeypatch)
    run_transformer(config, SIZE)
    assert counter.found == flops.by_kind(flops.transformer(config, SIZE))


def test_a_counted_image_to_video_transformer(monkeypatch):
    config = replace(SMALL, in_channels=32, ofs_embed_dim=8)
    counter = Counter(monkeypatch)
    run_transformer(config, SIZE)
    assert counter.found == flops.by_kind(flops.transformer(config, SIZE))


@pytest.mark.parametrize("every", [1, 2])
def test_counted_recomputation(every, monkeypatch):
    """In PyNative a recomputed block calls the seam again: what is executed twice is what the formula says."""
    counter = Counter(monkeypatch)
    run_transformer(SMALL, SIZE, "all", every, gradient=True)
    step = flops.training_step(SMALL, SIZE, recompute="all", recompute_every=every, scores_again=False)
    assert sum(counter.found.values()) == step.forward + (step.hardware - step.model)


def test_counted_recomputation_that_keeps_attention(monkeypatch):
    counter = Counter(monkeypatch)
    run_transformer(SMALL, SIZE, "keep_attention", gradient=True)
    step = flops.training_step(SMALL, SIZE, recompute="keep_attention", scores_again=False)
    scores = flops.by_kind(flops.transformer(SMALL, SIZE))["attention"] // 2  # inside attention's gradient
    assert sum(counter.found.values()) == step.forward + (step.hardware - step.model) - scores


@pytest.mark.parametrize("preset", ["gated-gelu", "relu"])
def test_a_counted_text_encoder(preset, monkeypatch):
    config = replace(PRESETS["tiny-1.5"].text, feed_forward_proj=preset)
    model = T5EncoderModel(config).initialize(0)
    counter = Counter(monkeypatch)
    model(ms.Tensor(np.ones((2, 5), np.int32)))
    assert counter.found == flops.by_kind(flops.t5_encoder(config, 2, 5))


@pytest.mark.parametrize("tiling", [None, TilingConfig(tile_height=16, tile_width=16, overlap_width=0.5)])
def test_a_counted_vae(tiling, monkeypatch):
    """13 frames: a first chunk of 13 and none after it; 17 frames: 9 and 8, as latents 3 and 2."""
    model = AutoencoderKLCogVideoX(VAE).initialize(0)
    for frames in (13, 17):
        counter = Counter(monkeypatch)
        mean, _ = model.encode(noise(1, 3, frames, 16, 24), tiling)
        assert counter.found == flops.by_kind(
            vae_encode(VAE, batch=1, frames=frames, height=16, width=24, tiling=tiling)
        )
        monkeypatch.undo()
        counter = Counter(monkeypatch)
        model.decode(mean, tiling)
        wanted = vae_decode(VAE, batch=1, latent_frames=mean.shape[2], height=16, width=24, tiling=tiling)
        assert counter.found == flops.by_kind(wanted)
        monkeypatch.undo()


def test_tiles_cost_their_overlaps():
    size: dict[str, Any] = {"batch": 1, "frames": 9, "height": 16, "width": 24}
    tiled = vae_encode(
        VAE, **size, tiling=TilingConfig(tile_height=16, tile_width=16, overlap_height=0, overlap_width=0.5)
    )
    # Widths 16, 16 and 8 in place of 24.
    assert flops.total(tiled) * 24 == flops.total(vae_encode(VAE, **size)) * (16 + 16 + 8)
