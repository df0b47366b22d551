"""Names and shapes of the transformer's parameters, as in the published checkpoints. No MindSpore here."""

from __future__ import annotations

from core.configs import TransformerConfig
from core.params import ParamSpec, ParamTable, conv_spec, linear_spec, norm_spec, prefixed

FEED_FORWARD_FACTOR = 4  # width of the feed-forward layer in units of the residual stream (paper, section 2.2)


def block_table(config: TransformerConfig) -> ParamTable:
    """One expert transformer block, names relative to ``transformer_blocks.<i>``."""
    dim, bias = config.inner_dim, config.attention_bias
    affine = config.norm_elementwise_affine
    table: ParamTable = {}
    table |= linear_spec("norm1.linear", config.time_embed_dim, 6 * dim)
    table |= norm_spec("norm1.norm", dim, affine=affine)
    table |= norm_spec("attn1.norm_q", config.attention_head_dim)
    table |= norm_spec("attn1.norm_k", config.attention_head_dim)
    for name in ("to_q", "to_k", "to_v"):
        table |= linear_spec(f"attn1.{name}", dim, dim, bias=bias)
    table |= linear_spec("attn1.to_out.0", dim, dim)
    table |= linear_spec("norm2.linear", config.time_embed_dim, 6 * dim)
    table |= norm_spec("norm2.norm", dim, affine=affine)
    table |= linear_spec("ff.net.0.proj", dim, FEED_FORWARD_FACTOR * dim)
    table |= linear_spec("ff.net.2", FEED_FORWARD_FACTOR * dim, dim)
    return table


def _patch_embed_table(config: TransformerConfig) -> ParamTable:
    dim, patch = config.inner_dim, config.patch_size
    table: ParamTable = {}
    if config.use_learned_positional_embeddings:
        frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        patches = frames * (config.sample_height // patch) * (config.sample_width // patch)
        shape = (1, config.max_text_seq_length + patches, dim)
        # Learned by its authors, frozen here as in diffusers (a buffer there).
        table["pos_embedding"] = ParamSpec(shape=shape, init="sincos", trainable=False)
    if config.patch_size_t is None:
        table |= conv_spec("proj", config.in_channels, dim, (patch, patch), bias=config.patch_bias)
    else:
        # The published 1.5 checkpoints have this bias although their config says patch_bias false.
        table |= linear_spec("proj", config.in_channels * patch * patch * config.patch_size_t, dim)
    table |= linear_spec("text_proj", config.text_embed_dim, dim)
    return prefixed("patch_embed", table)


def parameter_table(config: TransformerConfig) -> ParamTable:
    """Every parameter of the transformer, in the order of the published state dict."""
    dim, time_dim = config.inner_dim, config.time_embed_dim
    patch_volume = config.patch_size**2 * (config.patch_size_t or 1)
    table = _patch_embed_table(config)
    table |= linear_spec("time_embedding.linear_1", dim, time_dim)
    table |= linear_spec("time_embedding.linear_2", time_dim, time_dim)
    if config.ofs_embed_dim:
        table |= linear_spec("ofs_embedding.linear_1", config.ofs_embed_dim, config.ofs_embed_dim)
        table |= linear_spec("ofs_embedding.linear_2", config.ofs_embed_dim, config.ofs_embed_dim)
    for index in range(config.num_layers):
        table |= prefixed(f"transformer_blocks.{index}", block_table(config))
    table |= norm_spec("norm_final", dim, affine=config.norm_elementwise_affine)
    table |= linear_spec("norm_out.linear", time_dim, 2 * dim)
    table |= norm_spec("norm_out.norm", dim, affine=config.norm_elementwise_affine)
    table |= linear_spec("proj_out", dim, patch_volume * config.out_channels)
    return table
