"""What a training step moves and computes per rank, in formulas: ``python -m bench.comm_cost`` prints the table.

Bytes are those that a rank sends in the least any algorithm needs (``core.parallel.traffic``); counted bytes of a run
are compared with these formulas by ``tests/distributed``. Arithmetic only, no MindSpore.

Letters: n ranks that share a sample, p ranks in all, B samples a rank, N heads, K head size, D = N K, L text and V
video tokens, l = ceil(L / n), v = ceil(V / n), S = L + V.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from core.configs import TransformerConfig
from core.parallel.mesh import Mesh, part_size, share
from core.parallel.traffic import sent_bytes
from core.transformer.parameters import FEED_FORWARD_FACTOR, parameter_table

Recompute = Literal["none", "all", "keep_attention"]
MODES: tuple[Recompute, ...] = ("none", "all", "keep_attention")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Tokens of one sample as the transformer sees them, and how many samples are worked on at a time."""

    text: int
    video: int
    batch: int = 1

    @classmethod
    def of(
        cls, config: TransformerConfig, *, frames: int, height: int, width: int, text: int, batch: int = 1
    ) -> Sample:
        """From pixels; the number of latent frames is padded to a multiple of ``patch_size_t``."""
        patch_t = config.patch_size_t or 1
        latent = (frames - 1) // 4 + 1
        latent += -latent % patch_t
        side = 8 * config.patch_size
        return cls(text=text, video=latent // patch_t * (height // side) * (width // side))


@dataclass(frozen=True, kw_only=True)
class UlyssesBytes:
    """Sent by one rank for the tokens of a micro-batch: all-to-alls around attention, and the gathered output."""

    forward: int
    backward: int
    output: int

    @property
    def total(self) -> int:
        """All of a training step's forward and backward pass."""
        return self.forward + self.backward + self.output


def ulysses_bytes(
    config: TransformerConfig, sample: Sample, ranks: int, recompute: Recompute, *, itemsize: int = 2, every: int = 1
) -> UlyssesBytes:
    """Bytes of ``core.parallel.ulysses``.

    A block's forward pass exchanges q, k and v in one all-to-all, ``3 B N (l + v) K`` numbers of each rank, and the
    attention's output in another, a third of that. The backward pass does both again for the gradients, and a block
    that is computed again (either mode: the kept attention spares products, not messages) once more before that. The
    output of the last layer, ``B v X`` numbers, is gathered once and its gradient not sent.
    """
    tokens = share(sample.text, ranks) + share(sample.video, ranks)
    one = sample.batch * config.inner_dim * tokens * itemsize
    block = sent_bytes("all_to_all", 3 * one, ranks) + sent_bytes("all_to_all", one, ranks)
    again = len(range(0, config.num_layers, every)) if recompute != "none" else 0
    patch = config.patch_size**2 * (config.patch_size_t or 1) * config.out_channels
    output = sample.batch * share(sample.video, ranks) * patch * itemsize
    return UlyssesBytes(
        forward=config.num_layers * block,
        backward=(config.num_layers + again) * block,
        output=sent_bytes("all_gather", output, ranks),
    )


@dataclass(frozen=True, kw_only=True)
class ZeroBytes:
    """Sent by one rank for gradients and parameters in a step."""

    gradients: int
    parameters: int

    @property
    def total(self) -> int:
        """Both."""
        return self.gradients + self.parameters


def zero_bytes(
    shapes: Mapping[str, tuple[int, ...]],
    ranks: int,
    stage: int,
    *,
    recompute: Recompute = "none",
    every: int = 1,
    stored_size: int = 4,
    computed_size: int = 2,
    gradient_size: int = 4,
    micro_batches: int = 1,
) -> ZeroBytes:
    """Bytes of ``core.parallel.zero`` over ``ranks`` for parameters of these names and shapes.

    Stage 0 all-reduces the gradients once a step. Stage 1 reduce-scatters them once, stages 2 and 3 once a
    micro-batch. Stages 1 and 2 gather the updated parameters in the type they are stored in; stage 3 gathers them in
    the type that is computed in, in each micro-batch's forward pass and again for every block that is computed again.
    Sums over copies (``copies_bytes``), norms and CAME's statistics (one number a row or column) are not counted.
    """
    padded = {name: ranks * part_size(tuple(shape), ranks) for name, shape in shapes.items()}
    count, once = sum(padded.values()), ranks - 1
    if stage == 0:
        whole = sum(math.prod(shape) for shape in shapes.values())
        return ZeroBytes(gradients=sent_bytes("all_reduce", gradient_size * whole, ranks), parameters=0)
    scattered = once * gradient_size * count // ranks * (micro_batches if stage > 1 else 1)
    if stage < 3:
        return ZeroBytes(gradients=scattered, parameters=once * stored_size * count // ranks)
    again = 0
    if recompute != "none":
        again = sum(n for name, n in padded.items() if (i := _block(name)) is not None and i % every == 0)
    gathered = once * computed_size * (count + again) // ranks
    return ZeroBytes(gradients=scattered, parameters=gathered * micro_batches)


def copies_bytes(part_elements: int, copies: int) -> int:
    """Sent by one rank to sum the fp32 gradients of its parts over the ranks that hold the same ones, once a step."""
    return sent_bytes("all_reduce", 4 * part_elements, copies)


def _block(name: str) -> int | None:
    """The number of the block that a parameter belongs to."""
    head, *rest = name.split(".")
    return int(rest[0]) if head == "transformer_blocks" else None


@dataclass(frozen=True, kw_only=True)
class RankFlops:
    """Operations of one rank in a step, matrix products alone: a multiplication and an addition are two."""

    linear: int
    attention: int

    def step(self, recompute: Recompute) -> int:
        """Forward, backward (twice the forward), and what is computed again before it."""
        again = {"none": 0, "all": self.linear + self.attention, "keep_attention": self.linear}[recompute]
        return 3 * (self.linear + self.attention) + again


def forward_flops(config: TransformerConfig, sample: Sample, ranks: int = 1) -> RankFlops:
    """A rank's forward pass through the blocks: ``(8 + 4 f) D^2`` a token, f the feed-forward's factor, and
    ``4 D S^2`` for attention; both are shared equally by the ranks of a sample. Padding is computed too.

    Patches, text projection, time embedding and output (under 1 % at the published size) are left out.
    """
    dim = config.inner_dim
    tokens = share(sample.text, ranks) + share(sample.video, ranks)
    whole = sample.text + sample.video
    return RankFlops(
        linear=config.num_layers * sample.batch * tokens * (8 + 4 * FEED_FORWARD_FACTOR) * dim**2,
        attention=config.num_layers * sample.batch * 4 * dim * whole**2 // ranks,
    )


def trained_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the transformer's trained parameters."""
    return {name: tuple(spec.shape) for name, spec in parameter_table(config).items() if spec.trainable}


def parameter_count(config: TransformerConfig) -> int:
    """Trained parameters of the transformer."""
    return sum(math.prod(shape) for shape in trained_shapes(config).values())


@dataclass(frozen=True, kw_only=True)
class LayoutCost:
    """One layout of a step with one sample a group."""

    mesh: Mesh
    ulysses: dict[Recompute, UlyssesBytes]
    zero: dict[tuple[int, Recompute], ZeroBytes]
    flops: RankFlops

    @property
    def name(self) -> str:
        """``SP4 x DP2``; a factor of 1 is left out."""
        parts = [f"SP{self.mesh.sequence}"] if self.mesh.sequence > 1 else []
        parts += [f"DP{self.mesh.data}"] if self.mesh.data > 1 else []
        return " x ".join(parts) or "1 card"

    def bytes_per_step(self, recompute: Recompute, stage: int) -> int:
        """Everything that a rank sends."""
        return self.ulysses[recompute].total + self.zero[stage, recompute].total

    def seconds(self, recompute: Recompute, stage: int, flops_rate: float, link_rate: float) -> tuple[float, float]:
        """(computing, sending) at these rates, one after the other: overlapping them can only be faster."""
        return self.flops.step(recompute) / flops_rate, self.bytes_per_step(recompute, stage) / link_rate


def layouts(
    config: TransformerConfig, sample: Sample, ranks: int, sequences: Sequence[int], *, itemsize: int = 2
) -> list[LayoutCost]:
    """The cost of each layout of ``ranks`` with so many of them a sample; ZeRO spans all ranks."""
    shapes = trained_shapes(config)
    zero: dict[tuple[int, Recompute], ZeroBytes] = {
        (s, m): zero_bytes(shapes, ranks, s, recompute=m, stored_size=itemsize, computed_size=itemsize)
        for s in range(4)
        for m in MODES
    }
    costs = []
    for n in sequences:
        ulysses: dict[Recompute, UlyssesBytes] = {
            m: ulysses_bytes(config, sample, n, m, itemsize=itemsize) for m in MODES
        }
        flops = forward_flops(config, sample, n)
        costs.append(LayoutCost(mesh=Mesh(ranks=ranks, sequence=n), ulysses=ulysses, zero=zero, flops=flops))
    return costs


if __name__ == "__main__":
    from bench.comm_cost_table import main

    main()
