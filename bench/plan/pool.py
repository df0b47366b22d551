"""What MindSpore's pool on the CPU comes to hold while a chunk goes through the VAE. No MindSpore.

The pool hands out the smallest free piece that is large enough, joins neighbours that are free, and gives nothing back
to the system: what counts is the highest address it ever reached, holes and all. So the chunk's tensors are taken and
released here in the order of ``core.vae.blocks`` (without compiled blocks), and the highest address is read off.
"""

from __future__ import annotations

from core.configs import VAEConfig
from core.vae.parameters import MID_RESNETS, temporal_levels

CACHED = 2  # frames that a causal convolution remembers; they leave the pool after the block (``core.ops.apart``)
UNIT = 512  # bytes that a piece is a multiple of


class Pool:
    """Addresses handed out best fit; ``top`` is the highest one so far, in bytes."""

    def __init__(self) -> None:
        self.top = 0
        self._taken: dict[int, int] = {}  # start -> length

    def _free(self) -> list[tuple[int, int]]:
        """``(length, start)`` of the pieces between those that are taken."""
        pieces, end = [], 0
        for start in sorted(self._taken):
            if start > end:
                pieces.append((start - end, end))
            end = start + self._taken[start]
        return [*pieces, (self.top - end, end)] if self.top > end else pieces

    def take(self, size: int) -> int:
        """Address of a new piece of ``size`` bytes."""
        size = -(-size // UNIT) * UNIT
        fitting = [piece for piece in self._free() if piece[0] >= size]
        # The untouched rest of the pool is one more free piece: what is free below it reaches into it.
        last = max((start + length for start, length in self._taken.items()), default=0)
        start = min(fitting)[1] if fitting else last
        self._taken[start] = size
        self.top = max(self.top, start + size)
        return start

    def release(self, *starts: int) -> None:
        """Pieces that nothing refers to any more."""
        for start in starts:
            del self._taken[start]


class _Pass:
    """One chunk on its way: ``x`` is the piece that holds its ``channels x frames x height x width`` features."""

    def __init__(self, pool: Pool, batch: int, itemsize: int, shape: tuple[int, int, int, int]):
        self._pool, self._one = pool, batch * itemsize
        self.channels, self.frames, self.height, self.width = shape
        self.x = self._take(*shape)

    def _take(self, channels: int, frames: int, height: int, width: int) -> int:
        return self._pool.take(self._one * channels * frames * height * width)

    def _becomes(self, x: int, **sizes: int) -> None:
        self._pool.release(self.x)
        self.x = x
        for name, value in sizes.items():
            setattr(self, name, value)

    def resnet(self, channels: int) -> None:
        """A resnet holds its input, two results, and the frames that its convolutions will remember."""
        place = (self.frames, self.height, self.width)
        one, kept = self._take(channels, *place), self._take(self.channels, CACHED, *place[1:])
        two, kept_too = self._take(channels, *place), self._take(channels, CACHED, *place[1:])
        self._pool.release(one)
        if channels != self.channels:
            three = self._take(channels, *place)
            self._pool.release(two)
            two = three
        self._becomes(two, channels=channels)
        self._pool.release(kept, kept_too)

    def up(self, *, time: bool) -> None:
        """The widened features never exist, the convolution reads them where they are."""
        n = self.frames
        frames = n if not time else 2 * n if n % 2 == 0 else 2 * n - 1
        sizes = {"frames": frames, "height": 2 * self.height, "width": 2 * self.width}
        self._becomes(self._take(self.channels, *sizes.values()), **sizes)

    def down(self, *, time: bool) -> None:
        """The means of frame pairs never exist, nor their padded copy."""
        frames = (self.frames + 1) // 2 if time else self.frames
        sizes = {"frames": frames, "height": self.height // 2, "width": self.width // 2}
        self._becomes(self._take(self.channels, *sizes.values()), **sizes)

    def head(self, channels: int) -> None:
        """Norm and the last convolution."""
        self._take(channels, self.frames, self.height, self.width)


def pool_bytes(config: VAEConfig, side: str, *, frames: int, height: int, width: int, batch: int, itemsize: int) -> int:
    """Bytes that the pool has touched after a chunk of ``frames`` pixel frames of ``batch`` tiles of that many pixels.

    ``side``: ``encoder`` or ``decoder``.
    """
    pool, widths, temporal = Pool(), config.block_out_channels, temporal_levels(config)
    levels = len(widths)
    if side == "encoder":
        x = _Pass(pool, batch, itemsize, (widths[0], frames, height, width))
        for level, channels in enumerate(widths):
            for _ in range(config.layers_per_block):
                x.resnet(channels)
            if level < levels - 1:
                x.down(time=level < temporal)
        for _ in range(MID_RESNETS):
            x.resnet(widths[-1])
        x.head(2 * config.latent_channels)
        return pool.top
    ratio = config.spatial_compression_ratio
    latent = -(-frames // int(config.temporal_compression_ratio))
    x = _Pass(pool, batch, itemsize, (widths[-1], latent, height // ratio, width // ratio))
    for _ in range(MID_RESNETS):
        x.resnet(widths[-1])
    for level, channels in enumerate(reversed(widths)):
        for _ in range(config.layers_per_block + 1):
            x.resnet(channels)
        if level < levels - 1:
            x.up(time=level < temporal)
    x.head(config.out_channels)
    return pool.top
