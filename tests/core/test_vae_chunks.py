"""Which numbers of frames are taken and how they are cut, by hand; and the parameter table's names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.presets import PRESETS
from core.vae.chunks import decoded_frames, latent_chunks, latent_frames, sample_chunks
from core.vae.parameters import parameter_table

PUBLISHED = PRESETS["5b"].vae


def test_sample_chunks_by_hand():
    assert sample_chunks(1) == [(0, 1)]
    assert sample_chunks(5) == [(0, 5)]
    assert sample_chunks(8) == [(0, 8)]
    assert sample_chunks(9) == [(0, 9)]
    assert sample_chunks(13) == [(0, 13)]
    assert sample_chunks(17) == [(0, 9), (9, 17)]
    assert sample_chunks(77)[:2] == [(0, 13), (13, 21)]
    assert sample_chunks(77)[-1] == (69, 77)


def test_latent_chunks_by_hand():
    assert latent_chunks(1) == [(0, 1)]
    assert latent_chunks(2) == [(0, 2)]
    assert latent_chunks(3) == [(0, 3)]
    assert latent_chunks(5) == [(0, 3), (3, 5)]
    assert latent_chunks(6) == [(0, 2), (2, 4), (4, 6)]


@given(st.integers(1, 500))
def test_chunks_cover_every_frame_once(count):
    for spans in (sample_chunks(count), latent_chunks(count)):
        assert [i for start, stop in spans for i in range(start, stop)] == list(range(count))


@pytest.mark.parametrize(
    ("frames", "latents"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (49, 13), (77, 20), (80, 20), (81, 21), (85, 22)]
)
def test_latent_frames(frames, latents):
    assert latent_frames(frames) == latents


@pytest.mark.parametrize(("latents", "frames"), [(1, 1), (2, 8), (3, 9), (4, 16), (13, 49), (20, 80), (21, 81)])
def test_decoded_frames(latents, frames):
    assert decoded_frames(latents) == frames


@given(st.integers(0, 60))
def test_decoding_inverts_encoding_for_8k_and_8k_plus_1(k):
    for frames in (8 * k, 8 * k + 1):
        if frames:
            assert decoded_frames(latent_frames(frames)) == frames


@pytest.mark.parametrize(("frames", "hint"), [(2, "1 or 4"), (10, "9 or 12"), (47, "45 or 48"), (0, "to 1")])
def test_other_counts_are_refused_with_a_remedy(frames, hint):
    with pytest.raises(UserError, match=rf"got {frames} frames, need 4k or 4k \+ 1.*{hint}"):
        latent_frames(frames)


def test_no_latents_are_refused():
    with pytest.raises(UserError, match="got 0 frames, need at least 1"):
        decoded_frames(0)


def test_published_size():
    table = parameter_table(PUBLISHED)
    assert sum(spec.size for spec in table.values()) == 215_583_907
    assert table["encoder.down_blocks.0.resnets.0.conv1.conv.weight"].shape == (128, 128, 3, 3, 3)
    assert table["encoder.down_blocks.1.resnets.0.conv_shortcut.weight"].shape == (256, 128, 1, 1, 1)
    assert table["encoder.down_blocks.2.downsamplers.0.conv.weight"].shape == (256, 256, 3, 3)
    assert table["decoder.up_blocks.3.resnets.3.norm2.conv_b.conv.weight"].shape == (128, 16, 1, 1, 1)
    assert table["decoder.norm_out.norm_layer.weight"].shape == (128,)
    assert "encoder.down_blocks.3.downsamplers.0.conv.weight" not in table
    assert "quant_conv.weight" not in table


def test_quant_convolutions_have_the_reference_sizes():
    config = replace(PUBLISHED, out_channels=16, use_quant_conv=True, use_post_quant_conv=True)
    table = parameter_table(config)
    assert table["quant_conv.weight"].shape == (32, 32, 1, 1, 1)
    assert table["post_quant_conv.weight"].shape == (16, 16, 1, 1, 1)


@pytest.mark.parametrize("field", ["use_quant_conv", "use_post_quant_conv"])
def test_a_quant_convolution_that_does_not_fit_is_refused(field):
    with pytest.raises(UserError, match=r"got out_channels 3 and latent_channels 16.*set both to false"):
        parameter_table(replace(PUBLISHED, **{field: True}))
