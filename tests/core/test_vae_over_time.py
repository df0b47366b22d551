"""Chunks of one clip on several processes, here one after the other in this one: the same bits as one process."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from bench.plan.encoders import cache_bytes
from core.errors import UserError
from core.presets import PRESETS
from core.vae import chunks, over_time, streaming
from core.vae.ends import ends, handed_on_bytes
from core.vae.model import AutoencoderKLCogVideoX
from core.vae.over_time import Neighbours

CONFIG = replace(
    PRESETS["tiny-1.5"].vae, block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4
)
SIDE = 2  # latents


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(CONFIG).initialize(0)


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(5, 2, [[0, 1], [2, 3], [4]]), (2, 3, [[0, 1]]), (3, 3, [[0, 1, 2]]), (1, 4, [[0]]), (3, 1, [[0], [1], [2]])],
)
def test_chunks_are_dealt_in_turn(count, size, expected):
    assert chunks.waves(count, size) == expected


class _Ring:
    """Processes that take turns within a wave: each finds what the one before it has sent."""

    def __init__(self, size: int, monkeypatch):
        self.size, self.sent = size, [[] for _ in range(size)]
        self.caches: list[Any] = []
        made = over_time.Handover

        def handover(near):
            self.caches.append(made(near))
            return self.caches[-1]

        monkeypatch.setattr(over_time, "Handover", handover)

    def _hand_on(self, index, end):
        self.sent[index].append(end)
        # What the last process sends in this wave is there after it: see ``run``.
        return self.sent[index - 1][len(self.sent[index]) - 1] if index else end

    def _neighbours(self, index) -> Neighbours:
        return Neighbours(self.size, index, partial(self._hand_on, index), lambda x, _: x, lambda ok: ok)

    def run(self, step, pieces, tile) -> dict[int, np.ndarray]:
        """Every chunk's result; ``self.kept`` is what each process has kept, by wave."""
        found, self.kept = {}, []

        def piece(k):
            return None if k is None else pieces[k]

        turns = [
            over_time.in_waves(step, piece, len(pieces), self._neighbours(i), tile, ms.float32)
            for i in range(self.size)
        ]
        for wave in chunks.waves(len(pieces), self.size):
            self.sent = [[] for _ in range(self.size)]
            for index, turn in enumerate(turns):
                reached, y = next(turn)
                assert reached == wave
                assert (y is not None) == (index < len(wave))
                if y is not None:
                    found[wave[index]] = y.asnumpy()
            first = self.caches[0]
            first._kept = dict(zip(first._kept, self.sent[-1], strict=True))
            self.kept.append([sum(x.size * x.itemsize for x in c._kept.values()) for c in self.caches])
            assert len({len(sent) for sent in self.sent}) == 1, "all take part in every message"
        return found


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("side", "length"), [("decoder", 4), ("decoder", 11), ("encoder", 25), ("encoder", 40)])
def test_each_chunk_has_the_bits_of_one_process(vae, side, length, size, monkeypatch):
    decodes = side == "decoder"
    step = vae.passes[decodes]
    scale, channels = (1, CONFIG.latent_channels) if decodes else (8, 3)
    shape = (1, channels, length, SIDE * scale, SIDE * scale)
    x = ms.Tensor(np.random.default_rng(length).standard_normal(shape).astype(np.float32))
    spans = chunks.latent_chunks(length) if decodes else chunks.sample_chunks(length)
    pieces = [x[:, :, a:b] for a, b in spans]
    ring = _Ring(size, monkeypatch)
    found = ring.run(step, pieces, (1, SIDE, SIDE))
    cache: Any = {}
    for k, piece in enumerate(pieces):
        expected, cache = step.run(piece, cache)
        np.testing.assert_array_equal(found[k], expected.asnumpy())
    # The first process keeps one set of frames from wave to wave, as one process does; the others keep nothing.
    whole = cache_bytes(CONFIG, side, 8 * SIDE, 8 * SIDE, 4)
    assert ring.kept[0] == [whole] + [0] * (size - 1)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_what_is_handed_on_has_the_shapes_that_idle_processes_expect(vae, side):
    seen = []

    def hand_on(end):
        seen.append(end.shape)
        return end

    near = Neighbours(2, 1, hand_on, lambda x, _: x, lambda ok: ok)
    shape = (2, CONFIG.latent_channels, 2, 2, 3) if side == "decoder" else (2, 3, 8, 16, 24)
    cache: Any = over_time.Handover(near)
    vae.passes[side == "decoder"].run(ms.Tensor(np.ones(shape, np.float32)), cache)
    assert seen == ends(CONFIG, side, 2, 2, 3)
    total = 4 * sum(math.prod(shape) for shape in seen)
    # 5 chunks of 2 processes: two waves of two, and the last chunk alone. ``total`` is of a batch of 2.
    assert handed_on_bytes(CONFIG, side, 5, 2, 2, 3, 4) == total
    assert handed_on_bytes(CONFIG, side, 1, 2, 2, 3, 4) == 0


def test_published_sizes_by_hand():
    """CogVideoX's decoder at 8 x 8 latents: 2 frames of the input of every 3 x 3 x 3 convolution."""
    config = PRESETS["5b"].vae
    mid = 16 + 4 * 512  # conv_in, two residual blocks of two convolutions
    levels = [512 * 8, 512 + 256 * 7, 256 * 8, 256 + 128 * 7]
    elements = 2 * 64 * (mid + sum(width * 4**i for i, width in enumerate(levels)) + 128 * 4**3)
    assert sum(math.prod(shape) for shape in ends(config, "decoder", 1, 8, 8)) == elements


def test_what_one_process_cannot_read_all_refuse():
    """The one that has not met the problem looks for it in the rest of the file."""

    def broken(at):
        for k in range(4):
            if k == at:
                raise UserError(f"frame {k}: damaged")
            yield np.zeros((1, 3, 8, 8, 8), np.float32)

    for asked in (0, None):
        turns = streaming._Turns(broken(1), lambda ok: False)
        with pytest.raises(UserError, match="damaged"):
            turns.piece(asked)
    with pytest.raises(UserError, match="another process"):
        streaming._Turns(broken(9), lambda ok: False).piece(0)
    with pytest.raises(UserError, match="damaged"):
        streaming._Turns(broken(3), lambda ok: ok).end()
    assert streaming._Turns(broken(9), lambda ok: ok).piece(None) is None
