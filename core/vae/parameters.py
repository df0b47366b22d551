"""Names and shapes of the VAE's parameters, as in the published ``vae/diffusion_pytorch_model.safetensors``."""

from __future__ import annotations

from core.configs import VAEConfig
from core.errors import UserError
from core.params import ParamTable, conv_spec, norm_spec, prefixed

MID_RESNETS = 2  # both mid blocks have two, whatever layers_per_block says


def temporal_levels(config: VAEConfig) -> int:
    """How many blocks halve (encoder) or double (decoder) the number of frames; they are the first ones."""
    return int(config.temporal_compression_ratio).bit_length() - 1


def _causal(name: str, in_channels: int, out_channels: int, kernel: int = 3) -> ParamTable:
    return conv_spec(f"{name}.conv", in_channels, out_channels, (kernel, kernel, kernel))


def _norm(name: str, channels: int, latent_channels: int | None) -> ParamTable:
    """GroupNorm, or in the decoder GroupNorm modulated by two 1x1x1 convolutions of the latents."""
    if latent_channels is None:
        return norm_spec(name, channels)
    return {
        **norm_spec(f"{name}.norm_layer", channels),
        **_causal(f"{name}.conv_y", latent_channels, channels, kernel=1),
        **_causal(f"{name}.conv_b", latent_channels, channels, kernel=1),
    }


def _resnet(in_channels: int, out_channels: int, latent_channels: int | None) -> ParamTable:
    table = {
        **_norm("norm1", in_channels, latent_channels),
        **_causal("conv1", in_channels, out_channels),
        **_norm("norm2", out_channels, latent_channels),
        **_causal("conv2", out_channels, out_channels),
    }
    if in_channels != out_channels:
        table |= conv_spec("conv_shortcut", in_channels, out_channels, (1, 1, 1))
    return table


def _resnets(prefix: str, count: int, in_channels: int, out_channels: int, latent_channels: int | None) -> ParamTable:
    table: ParamTable = {}
    for i in range(count):
        first = in_channels if i == 0 else out_channels
        table |= prefixed(f"{prefix}.resnets.{i}", _resnet(first, out_channels, latent_channels))
    return table


def _encoder(config: VAEConfig) -> ParamTable:
    widths = config.block_out_channels
    table = _causal("conv_in", config.in_channels, widths[0])
    for i, width in enumerate(widths):
        table |= _resnets(f"down_blocks.{i}", config.layers_per_block, widths[max(i - 1, 0)], width, None)
        if i < len(widths) - 1:
            table |= conv_spec(f"down_blocks.{i}.downsamplers.0.conv", width, width, (3, 3))
    table |= _resnets("mid_block", MID_RESNETS, widths[-1], widths[-1], None)
    table |= norm_spec("norm_out", widths[-1])
    return table | _causal("conv_out", widths[-1], 2 * config.latent_channels)


def _decoder(config: VAEConfig) -> ParamTable:
    widths = config.block_out_channels[::-1]
    latent = config.latent_channels
    table = _causal("conv_in", latent, widths[0])
    table |= _resnets("mid_block", MID_RESNETS, widths[0], widths[0], latent)
    for i, width in enumerate(widths):
        table |= _resnets(f"up_blocks.{i}", config.layers_per_block + 1, widths[max(i - 1, 0)], width, latent)
        if i < len(widths) - 1:
            table |= conv_spec(f"up_blocks.{i}.upsamplers.0.conv", width, width, (3, 3))
    table |= _norm("norm_out", widths[-1], latent)
    return table | _causal("conv_out", widths[-1], config.out_channels)


def parameter_table(config: VAEConfig) -> ParamTable:
    """Table ``published name -> ParamSpec`` of the whole VAE.

    The optional ``quant_conv`` and ``post_quant_conv`` take their sizes from ``out_channels`` as in the reference
    (diffusers 0.42), which fits the moments only when ``out_channels == latent_channels``.

    Raises:
        UserError: a quant convolution is asked for and does not fit the latents.
    """
    table = prefixed("encoder", _encoder(config)) | prefixed("decoder", _decoder(config))
    if (config.use_quant_conv or config.use_post_quant_conv) and config.out_channels != config.latent_channels:
        raise UserError(
            f"use_quant_conv/use_post_quant_conv: got out_channels {config.out_channels} and latent_channels "
            f"{config.latent_channels}, need them equal (the reference sizes these layers by out_channels); set both "
            "to false, as in every published CogVideoX"
        )
    if config.use_quant_conv:
        table |= conv_spec("quant_conv", 2 * config.out_channels, 2 * config.out_channels, (1, 1, 1))
    if config.use_post_quant_conv:
        table |= conv_spec("post_quant_conv", config.out_channels, config.out_channels, (1, 1, 1))
    return table
