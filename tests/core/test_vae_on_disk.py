"""A VAE whose parameters are read when they are used: bits of the resident one, one side's bytes, no stale file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from bench.memory import resident_bytes
from core import ops, ops_cpu, weights
from core.errors import UserError, WeightsError
from core.presets import PRESETS
from core.vae.model import AutoencoderKLCogVideoX
from core.vae.passes import Apart
from core.vae.streaming import decode_pieces, encode_pieces
from core.vae.tiling import TilingConfig

CONFIG = replace(PRESETS["tiny-1.5"].vae, block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=4)
TILES = TilingConfig(tile_height=32, tile_width=32, overlap_height=0.25, overlap_width=0.25)
LATENTS = np.random.default_rng(0).standard_normal((16, 5, 5, 6)).astype(np.float32)
VIDEO = np.random.default_rng(1).uniform(-1, 1, (3, 9, 40, 48)).astype(np.float32)


@pytest.fixture(autouse=True)
def _nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SMALL_BYTES", 0)
    monkeypatch.setattr(ops_cpu, "APART_BYTES", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("vae")
    weights.save_vae(AutoencoderKLCogVideoX(CONFIG).initialize(0), where, max_shard_bytes=50_000)
    return where


def _results(vae: AutoencoderKLCogVideoX) -> list[np.ndarray]:
    decoded = np.concatenate(list(decode_pieces(vae, LATENTS, TILES)), 1)
    return [decoded, *encode_pieces(vae, lambda: [VIDEO], 9, (40, 48), TILES)]


def test_bits_do_not_depend_on_where_parameters_lie(folder: Path) -> None:
    whole = weights.load_vae(folder)
    expected, digest = _results(whole), weights.parameter_digest(whole)
    for resident in ("encoder", "decoder", "none"):
        vae = weights.load_vae(folder, resident=resident)
        for found, wanted in zip(_results(vae), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert weights.parameter_digest(vae) == digest


def test_only_the_side_that_works_is_read(folder: Path) -> None:
    vae = weights.load_vae(folder, resident="none")
    stored = vae.storage.stored
    assert stored.bytes_read == 0
    list(decode_pieces(vae, LATENTS[:, :2]))
    sizes = {side: sum(4 * s.size for n, s in vae.table.items() if n.startswith(side)) for side in ("enc", "dec")}
    assert stored.bytes_read == sizes["dec"]
    vae = weights.load_vae(folder, resident="encoder")
    assert vae.storage.stored.bytes_read == sizes["enc"]


def test_what_is_small_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SMALL_BYTES", 4 * 8 * 27)
    vae = weights.load_vae(folder, resident="none")
    kept = [name for name in vae.table if not vae.storage.keeps(name)]
    assert "decoder.norm_out.norm_layer.bias" in kept
    assert "decoder.mid_block.resnets.0.conv1.conv.weight" not in kept


def test_it_is_saved_whole(folder: Path, tmp_path: Path) -> None:
    weights.save_vae(weights.load_vae(folder, resident="none"), tmp_path)
    assert weights.parameter_digest(weights.load_vae(tmp_path)) == weights.parameter_digest(weights.load_vae(folder))


def test_the_other_side_is_checked_too(folder: Path, tmp_path: Path) -> None:
    model = AutoencoderKLCogVideoX(replace(CONFIG, layers_per_block=2)).initialize(0)
    weights.save_vae(model, tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(WeightsError) as refused:
        weights.load_vae(tmp_path, resident="decoder")
    assert {text.split(".")[0] for text in refused.value.problems} == {"unexpected encoder", "unexpected decoder"}


def test_a_file_that_changed_is_not_read(tmp_path: Path) -> None:
    for seed in (0, 1):
        weights.save_vae(AutoencoderKLCogVideoX(CONFIG).initialize(seed), tmp_path / str(seed))
    vae = weights.load_vae(tmp_path / "0", resident="none")
    name = "diffusion_pytorch_model.safetensors"
    (tmp_path / "1" / name).replace(tmp_path / "0" / name)
    with pytest.raises(UserError, match=f"{name}: changed or removed while decoder"):
        list(decode_pieces(vae, LATENTS))
    (tmp_path / "0" / name).unlink()
    with pytest.raises(UserError, match="changed or removed"):
        list(decode_pieces(vae, LATENTS))


def test_cached_frames_of_a_stream_lie_apart(folder: Path) -> None:
    vae, z = weights.load_vae(folder), ms.Tensor(LATENTS[None, :, :2])
    (plain, one), (same, other) = vae.decode_chunk(z, {}), vae.decode_chunk(z, Apart())
    assert (type(one), type(other)) == (dict, Apart)
    np.testing.assert_array_equal(plain.asnumpy(), same.asnumpy())
    for name, frames in one.items():
        np.testing.assert_array_equal(frames.asnumpy(), other[name].asnumpy())


def test_what_lies_apart_goes_with_its_tensor() -> None:
    given = ms.Tensor(np.random.default_rng(2).standard_normal(2**24).astype(np.float32))
    before = resident_bytes() or 0
    copies = [ops.apart(given) for _ in range(4)]
    assert (resident_bytes() or 0) - before > 3.9 * 2**26
    np.testing.assert_array_equal(copies[3].asnumpy(), given.asnumpy())
    del copies
    assert 0 < (resident_bytes() or 0) < before + 2**25
