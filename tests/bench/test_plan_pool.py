"""The plan's picture of MindSpore's pool: addresses by hand, a chunk by hand, sizes that it must not forget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.plan import encoders
from bench.plan.pool import Pool, pool_bytes
from core.presets import PRESETS

VAE = PRESETS["5b"].vae


def test_the_smallest_free_piece_that_fits_is_taken_and_neighbours_join() -> None:
    pool = Pool()
    a, b, c, d = (pool.take(size) for size in (4 * 512, 512, 2 * 512, 512))
    assert (a, b, c, d) == (0, 4 * 512, 5 * 512, 7 * 512)
    pool.release(a, c)
    assert pool.take(2 * 512) == c
    assert pool.take(1) == a
    pool.release(b, c)
    assert pool.take(6 * 512) == 512, "three quarters of a, b and c are one piece"
    assert pool.take(2 * 512) == 8 * 512, "nothing fits: new memory"
    assert pool.top == 10 * 512


def test_a_free_end_is_the_beginning_of_new_memory() -> None:
    pool = Pool()
    pool.take(512)
    pool.release(pool.take(512))
    assert pool.take(3 * 512) == 512
    assert pool.top == 4 * 512


def test_a_chunk_by_hand() -> None:
    """One level: input, two results of equal size, and what both convolutions remember."""
    config: Any = SimpleNamespace(
        block_out_channels=(128,), layers_per_block=1, latent_channels=16, temporal_compression_ratio=4
    )
    frame = 4 * 128 * 8 * 16
    found = pool_bytes(config, "encoder", frames=9, height=8, width=16, batch=1, itemsize=4)
    assert found == 3 * 9 * frame + 2 * 2 * frame


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_it_holds_at_least_what_lives_at_once_and_little_more(side: str) -> None:
    found = pool_bytes(VAE, side, frames=9, height=96, width=160, batch=1, itemsize=4)
    first = 256 if side == "decoder" else 128
    alive = (first + 2 * 128) * 9 * 96 * 160 * 4
    assert alive <= found <= 1.25 * alive


def test_parameters_that_are_read_when_used_by_hand() -> None:
    sizes = {"frames": 9, "height": 64, "width": 96, "tiling": None, "itemsize": 4, "device": "cpu"}
    kept, read = (encoders.vae_phase(VAE, "decoder", **sizes, resident=r).bytes for r in ("decoder", "none"))
    # Before 512 channels of 3 x 8 x 12 are packed, their kernel is read; what is packed of the largest features is cut.
    kernel, packed = 512 * 512 * 27 * 4, 512 * 3 * 8 * 12 * 4
    assert packed < encoders.PACKED_BYTES < 128 * 9 * 64 * 96 * 4
    assert read["vae"] - kept["vae"] == kernel + packed - encoders.PACKED_BYTES
    assert read["parameters"] < 6 * 2**20 < 400 * 2**20 < kept["parameters"]
    whole = encoders.vae_phase(VAE, "decoder", **sizes).bytes
    assert whole["parameters"] > kept["parameters"]
    assert whole["vae"] == kept["vae"]
