"""Tiles of the VAE on 2 and 3 ranks give the bits of one; what Ulysses is counted to send is what the formula says."""

from __future__ import annotations

import numpy as np
import pytest

from bench.comm_cost import Sample, trained_shapes, ulysses_bytes, zero_bytes
from core.vae.chunks import latent_chunks, sample_chunks
from core.vae.ends import shared_bytes
from core.vae.tiling import TilingConfig, plan_tiles
from tests.distributed.ranks import run_ranks
from tests.distributed.train_cases import CONFIG, GLOBAL_BATCH
from tests.distributed.ulysses_cases import LENGTHS, config_of
from tests.distributed.vae_cases import CLIPS, TILES, WIDTH, vae_config


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    cases = ("vae", "time", "zero", "traffic")
    return run_ranks("tests.distributed.vae_cases", 2, tmp_path_factory.mktemp("two"), *cases)


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory):
    return run_ranks("tests.distributed.vae_cases", 3, tmp_path_factory.mktemp("three"), "vae", "time")


@pytest.fixture(scope="module", params=["two_ranks", "three_ranks"])
def of_ranks(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def tiles_of_ranks(of_ranks):
    return of_ranks.of("vae")


@pytest.mark.parametrize("name", list(TILES))
def test_tiles_dealt_to_ranks_are_those_of_one_process(tiles_of_ranks, name):
    for rank in tiles_of_ranks:
        for what in ("decode", "encode"):
            np.testing.assert_array_equal(rank[f"{what}.shared.{name}"], rank[f"{what}.alone.{name}"])
        np.testing.assert_array_equal(rank["untiled"], tiles_of_ranks[0]["untiled"])
    tiling = TilingConfig(tile_height=32, tile_width=32, overlap_height=0.25, overlap_width=0.25, **TILES[name])
    groups = len(plan_tiles(7, 7, tiling).groups(tiling.max_batch if tiling.vectorised else 1))
    rounds = -(-groups // len(tiles_of_ranks))
    # 4 latents are two chunks.
    assert [int(rank[f"chunks.{name}"]) for rank in tiles_of_ranks] == [2 * rounds] * len(tiles_of_ranks)
    assert rounds < groups


@pytest.mark.parametrize("name", list(CLIPS))
def test_chunks_dealt_to_ranks_have_the_bits_of_one_process(of_ranks, name):
    clip = CLIPS[name]
    assert len(latent_chunks(clip.latent_frames)) == len(sample_chunks(clip.frames)) == clip.chunks
    kinds = {"two": ["decode", "moments"], "tiled": ["decode"]}.get(name, [])
    for rank in of_ranks.of("time"):
        for kind in ("stream", "pieces", "encode", *kinds):
            np.testing.assert_array_equal(rank[f"{kind}.shared.{name}"], rank[f"{kind}.alone.{name}"])


@pytest.mark.parametrize("name", list(CLIPS))
def test_counted_bytes_of_a_shared_clip_are_those_of_the_formula(of_ranks, name):
    """Handed on: the ends of every wave, tile by tile. Published: each pixel of the result once, as fp32."""
    clip = CLIPS[name]
    for rank in of_ranks.of("time"):
        plan = plan_tiles(clip.height, WIDTH, clip.tiling)
        for side, length in (("encoder", clip.frames), ("decoder", clip.latent_frames)):
            formula = shared_bytes(vae_config(), side, length, plan, of_ranks.ranks, 4)
            assert rank[f"sent.{side}.{name}"].tolist() == [formula["handed on"], formula["published"]]
        assert rank[f"stream.shared.{name}"].nbytes == formula["published"]


@pytest.fixture(scope="module")
def counted(two_ranks):
    return two_ranks.of("traffic")


@pytest.fixture(scope="module")
def counted_zero(two_ranks):
    return two_ranks.of("zero")


@pytest.mark.parametrize("mode", ["none", "all", "keep_attention"])
@pytest.mark.parametrize("lengths", list(LENGTHS))
def test_counted_bytes_are_those_of_the_formula(counted, lengths, mode):
    config = config_of("tiny-1.5")
    text, frames, height, width = LENGTHS[lengths]
    video = frames // 2 * (height // 2) * (width // 2)
    for rank in counted:
        expected = ulysses_bytes(config, Sample(text=text, video=video, batch=2), 2, mode, itemsize=4)
        found = {kind: int(rank[f"{lengths}.{mode}.forward.{kind}"]) for kind in ("all_to_all", "all_gather")}
        assert found == {"all_to_all": expected.forward, "all_gather": expected.output}
        found = {kind: int(rank[f"{lengths}.{mode}.step.{kind}"]) for kind in ("all_to_all", "all_gather")}
        assert found == {"all_to_all": expected.forward + expected.backward, "all_gather": expected.output}


@pytest.mark.parametrize("mode", ["none", "all"])
@pytest.mark.parametrize("stage", range(4))
def test_counted_bytes_of_zero_are_those_of_the_formula(counted_zero, stage, mode):
    # 4 samples on 2 data ranks: 2 micro-batches each; the CPU computes in fp32.
    expected = zero_bytes(
        trained_shapes(CONFIG), 2, stage, recompute=mode, computed_size=4, micro_batches=GLOBAL_BATCH // 2
    )
    for rank in counted_zero:
        found = {what: int(rank[f"{stage}.{mode}.{what}"]) for what in ("gradients", "parameters")}
        assert found == {"gradients": expected.gradients, "parameters": expected.parameters}
