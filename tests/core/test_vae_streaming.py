"""Streams equal the whole: bits of decode, with tiles through a file and without; encode with any pieces."""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from core.errors import UserError
from core.presets import PRESETS
from core.vae.model import AutoencoderKLCogVideoX
from core.vae.streaming import decode_pieces, encode_pieces
from core.vae.tiling import TilingConfig
from tests.tolerances import OPERATOR, relative_error

CONFIG = replace(PRESETS["tiny-1.5"].vae, block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=4)
TILES = TilingConfig(tile_height=32, tile_width=32, overlap_height=0.25, overlap_width=0.25)
TILINGS = [None, TILES, replace(TILES, vectorised=True, max_batch=2)]


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(CONFIG).initialize(0)


@pytest.mark.parametrize("tiling", TILINGS)
def test_decoded_pieces_equal_the_whole(vae, tiling, tmp_path):
    latents = np.random.default_rng(0).standard_normal((16, 5, 5, 6)).astype(np.float32)
    pieces = list(decode_pieces(vae, latents, tiling, tmp_path))
    assert [piece.shape[1] for piece in pieces] == ([9, 8] if tiling is None else [1] * 17)
    whole = vae.decode(ms.Tensor(latents[None]), tiling).asnumpy()[0]
    assert relative_error(np.concatenate(pieces, 1), whole) < OPERATOR
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("length", [3, 17])
def test_encoded_pieces_equal_the_whole(vae, tiling, length):
    video = np.random.default_rng(1).uniform(-1, 1, (3, 17, 40, 48)).astype(np.float32)

    def pixels():
        return (video[:, start : start + length] for start in range(0, 17, length))

    found = encode_pieces(vae, pixels, 17, (40, 48), tiling)
    whole = vae.encode(ms.Tensor(video[None]), tiling)
    for one, other in zip(found, whole, strict=True):
        assert relative_error(one, other.asnumpy()[0]) < OPERATOR


@pytest.mark.parametrize(("count", "message"), [(9, "more than"), (25, "ended before")])
def test_another_number_of_frames_is_refused(vae, count, message):
    def pixels():
        yield np.zeros((3, 17, 40, 48), np.float32)

    with pytest.raises(UserError, match=message):
        encode_pieces(vae, pixels, count, (40, 48), TILES)


def test_latents_of_another_shape_are_refused(vae):
    with pytest.raises(UserError, match="transpose"):
        list(decode_pieces(vae, np.zeros((5, 16, 5, 6), np.float32)))
