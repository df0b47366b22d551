"""Floating point operations of the models, from their configs and the sizes of a run. Arithmetic only, no MindSpore.

Counted are matrix products and convolutions, a multiplication and an addition as two operations; norms, activations,
softmax, rotation and the optimizer are not. A convolution's zero padding counts as work. *Model* FLOPs are what the
mathematics needs (a training step: the forward pass and its gradients), *hardware* FLOPs what is executed besides
because of recomputation: MFU and HFU of PaLM (arXiv 2204.02311, appendix B).

Letters: B batch, V video tokens, L text tokens, S = L + V, D width, N heads, K head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from core.configs import T5Config, TransformerConfig
from core.text.parameters import is_gated
from core.transformer.parameters import FEED_FORWARD_FACTOR

Kind = Literal["linear", "attention", "convolution"]
Recompute = Literal["none", "all", "keep_attention"]


@dataclass(frozen=True, kw_only=True)
class Product:
    """``times`` matrix products ``[rows, inner] @ [inner, columns]``; a convolution is the product it unfolds to.

    ``conditioning``: it works on patches, text or time before the first block, so that no gradient of a block's
    parameters passes through it.
    """

    name: str
    kind: Kind
    rows: int
    inner: int
    columns: int
    times: int = 1
    conditioning: bool = False

    @property
    def flops(self) -> int:
        """``2 rows inner columns`` each."""
        return 2 * self.rows * self.inner * self.columns * self.times


@dataclass(frozen=True, kw_only=True)
class Size:
    """What one forward pass of the transformer sees: B samples of ``[frames, C, height, width]`` latents and L tokens.

    ``frames`` includes padding to a multiple of ``patch_size_t``.
    """

    batch: int
    frames: int
    height: int
    width: int
    text_tokens: int

    def video_tokens(self, config: TransformerConfig) -> int:
        """V: patches of one sample."""
        return self.frames * self.height * self.width // (config.patch_size**2 * (config.patch_size_t or 1))


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Operations of one training step: ``forward`` once, ``model`` with gradients, ``hardware`` with recomputation."""

    forward: int
    model: int
    hardware: int


def total(products: Iterable[Product]) -> int:
    """Operations of all products."""
    return sum(product.flops for product in products)


def by_kind(products: Iterable[Product]) -> dict[str, int]:
    """Operations by ``kind``."""
    sums: dict[str, int] = {}
    for product in products:
        sums[product.kind] = sums.get(product.kind, 0) + product.flops
    return sums


def _linear(name: str, rows: int, inner: int, columns: int, times: int = 1, *, conditioning: bool = False) -> Product:
    return Product(
        name=name, kind="linear", rows=rows, inner=inner, columns=columns, times=times, conditioning=conditioning
    )


def _attention(name: str, length: int, size: int, times: int) -> tuple[Product, Product]:
    """Queries by keys, and weights by values, ``times`` heads."""
    scores = Product(name=f"{name}.scores", kind="attention", rows=length, inner=size, columns=length, times=times)
    values = Product(name=f"{name}.values", kind="attention", rows=length, inner=length, columns=size, times=times)
    return scores, values


def transformer_block(config: TransformerConfig, size: Size, blocks: int = 1) -> tuple[Product, ...]:
    """Products of ``blocks`` expert blocks; names as in the checkpoint, relative to the block."""
    dim, embed, batch = config.inner_dim, config.time_embed_dim, size.batch
    length = size.text_tokens + size.video_tokens(config)
    rows, wide = batch * length, FEED_FORWARD_FACTOR * dim
    heads = batch * config.num_attention_heads * blocks
    return (
        _linear("norm1.linear", batch, embed, 6 * dim, blocks, conditioning=True),
        *(_linear(f"attn1.{name}", rows, dim, dim, blocks) for name in ("to_q", "to_k", "to_v")),
        *_attention("attn1", length, config.attention_head_dim, heads),
        _linear("attn1.to_out.0", rows, dim, dim, blocks),
        _linear("norm2.linear", batch, embed, 6 * dim, blocks, conditioning=True),
        _linear("ff.net.0.proj", rows, dim, wide, blocks),
        _linear("ff.net.2", rows, wide, dim, blocks),
    )


def transformer(config: TransformerConfig, size: Size) -> tuple[Product, ...]:
    """Products of one forward pass; with guidance a denoising step passes twice the videos as its batch."""
    dim, embed, batch = config.inner_dim, config.time_embed_dim, size.batch
    video = batch * size.video_tokens(config)
    volume = config.patch_size**2 * (config.patch_size_t or 1)
    before = [
        _linear("patch_embed.proj", video, config.in_channels * volume, dim, conditioning=True),
        _linear("patch_embed.text_proj", batch * size.text_tokens, config.text_embed_dim, dim, conditioning=True),
        _linear("time_embedding.linear_1", batch, dim, embed, conditioning=True),
        _linear("time_embedding.linear_2", batch, embed, embed, conditioning=True),
    ]
    if config.ofs_embed_dim:
        wide = config.ofs_embed_dim
        before += [_linear(f"ofs_embedding.linear_{n}", 1, wide, wide, conditioning=True) for n in (1, 2)]
    after = (
        _linear("norm_out.linear", batch, embed, 2 * dim, conditioning=True),
        _linear("proj_out", video, dim, config.out_channels * volume),
    )
    return (*before, *transformer_block(config, size, config.num_layers), *after)


def published_forward(config: TransformerConfig, length: int) -> int:
    """``layers (24 D^2 S + 4 D S^2)``: the usual estimate of one forward pass over a joint sequence of ``length``.

    It leaves out embeddings, modulation and the output projection, well below 1 % at the published sizes.
    """
    dim = config.inner_dim
    return config.num_layers * (24 * dim**2 * length + 4 * dim * length**2)


def lora_products(base: Iterable[Product], rank: int, targets: Sequence[str]) -> tuple[Product, ...]:
    """The products with A and B of a LoRA beside those of ``base`` whose name ends with or matches a target."""
    found = [p for p in base if p.kind == "linear" and any(_targeted(p.name, target) for target in targets)]
    pairs = (
        (_linear(f"{p.name}.lora_A", p.rows, p.inner, rank, p.times),
         _linear(f"{p.name}.lora_B", p.rows, rank, p.columns, p.times))
        for p in found
    )  # fmt: skip
    return tuple(product for pair in pairs for product in pair)


def _targeted(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target) or fnmatchcase(name, target)


def training_step(
    config: TransformerConfig,
    size: Size,
    *,
    micro_batches: int = 1,
    recompute: Recompute = "none",
    recompute_every: int = 1,
    scores_again: bool = True,
    in_pieces: bool = False,
    norm_first: bool = False,
    lora_rank: int | None = None,
    lora_targets: Sequence[str] = (),
) -> StepFlops:
    """One optimizer step of ``micro_batches`` passes of ``size``.

    A gradient costs what the product itself does, for each of its two factors: three times the forward pass in all.
    With a LoRA the frozen factors have none, and what lies before the first block is not passed backwards.

    Args:
        recompute, recompute_every: as ``CogVideoXTransformer3DModel.recompute``.
        scores_again: attention's gradient computes queries by keys again (flash attention; on the CPU where the
            queries are cut into chunks). The outputs kept by ``keep_attention`` always need them again.
        in_pieces: feed-forwards are (``enable_forward_chunking``): their gradient makes the hidden layer once more.
        norm_first: all is done twice, first for the gradients' norm (the optimiser in the backward pass, clipped).
    """
    base = transformer(config, size)
    added = (
        lora_products(transformer_block(config, size, config.num_layers), lora_rank, lora_targets) if lora_rank else ()
    )
    forward = total(base) + total(added)
    backward = sum(_backward(product, frozen=lora_rank is not None) for product in base) + 2 * total(added)
    sparing = 0 if recompute == "none" else -(-config.num_layers // recompute_every)
    share = transformer_block(config, size, sparing)
    again = total(share) + (total(lora_products(share, lora_rank, lora_targets)) if lora_rank else 0)
    if recompute == "keep_attention":
        again -= by_kind(share).get("attention", 0)
    if in_pieces:
        hidden = tuple(p for p in transformer_block(config, size, config.num_layers) if p.name == "ff.net.0.proj")
        again += total(hidden) + (total(lora_products(hidden, lora_rank, lora_targets)) if lora_rank else 0)
    scored = config.num_layers if scores_again else (sparing if recompute == "keep_attention" else 0)
    scores = total(p for p in transformer_block(config, size, scored) if p.name == "attn1.scores")
    model = forward + backward
    executed = (model + again + scores) * (2 if norm_first else 1)
    return StepFlops(forward=forward * micro_batches, model=model * micro_batches, hardware=executed * micro_batches)


def _backward(product: Product, *, frozen: bool) -> int:
    if not frozen or product.kind == "attention":
        return 2 * product.flops
    return 0 if product.conditioning else product.flops


def t5_encoder(config: T5Config, batch: int, length: int) -> tuple[Product, ...]:
    """Products of encoding ``batch`` texts of ``length`` tokens."""
    rows, inner, layers = batch * length, config.num_heads * config.d_kv, config.num_layers
    wide = ("wi_0", "wi_1") if is_gated(config) else ("wi",)
    return (
        *(_linear(name, rows, config.d_model, inner, layers) for name in ("q", "k", "v")),
        *_attention("SelfAttention", length, config.d_kv, batch * config.num_heads * layers),
        _linear("o", rows, inner, config.d_model, layers),
        *(_linear(name, rows, config.d_model, config.d_ff, layers) for name in wide),
        _linear("wo", rows, config.d_ff, config.d_model, layers),
    )
