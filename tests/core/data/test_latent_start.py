"""Why a clip is cut from the beginning of its cache: the causal VAE's first latent stands for one frame."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from core.data.shapes import draw_clip, render_clip
from core.data.transforms import to_model
from core.presets import PRESETS
from core.vae.model import AutoencoderKLCogVideoX

FRAMES = 17  # chunks of 9 and 8 frames, so that the first 9 see the same group norms with and without the rest


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKLCogVideoX(PRESETS["tiny-1.5"].vae).initialize(0)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return to_model(render_clip(draw_clip(0, 0), frames=FRAMES, height=32, width=48))[None]


def encode(vae, video: np.ndarray) -> np.ndarray:
    """Mean of the latents, ``[t, C, h, w]``."""
    return vae.encode(ms.Tensor(np.ascontiguousarray(video)))[0].asnumpy()[0].swapaxes(0, 1)


def test_the_beginning_of_a_cache_is_the_cache_of_the_beginning(vae, pixels):
    np.testing.assert_allclose(encode(vae, pixels[:, :, :9]), encode(vae, pixels)[:3], atol=1e-5)


def test_a_later_latent_is_no_first_latent_of_any_shorter_clip(vae, pixels):
    whole = encode(vae, pixels)
    right = distance(whole[0], encode(vae, pixels[:, :, :9])[0])
    # Latent 1 stands for frames 1 to 4; whichever frame one starts to encode from, the first latent is another.
    for start in range(FRAMES - 8):
        assert distance(whole[1], encode(vae, pixels[:, :, start : start + 9])[0]) > 1000 * right, start


def test_only_motion_tells_a_later_latent_from_a_first_one(vae, pixels):
    still = np.repeat(pixels[:, :, :1], FRAMES, axis=2)
    whole = encode(vae, still)
    # The causal padding repeats the first frame, so a still clip has the same latent throughout: a set of clips that
    # hardly move would not show a wrong cut, and no check of values could find it.
    assert all(distance(latent, whole[0]) < 1e-4 for latent in whole)
    assert distance(encode(vae, pixels)[1], whole[0]) > 1e-2


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference; at least the rounding of fp32, so that equal arrays can be a yardstick."""
    return max(float(np.abs(one - other).max()), 1e-6)
