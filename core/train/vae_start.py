"""Where the training of an autoencoder from nothing starts: nearly linear, without noise."""

from __future__ import annotations

from typing import Any

import numpy as np

_GAIN = np.sqrt(3.0)  # U(-1, 1) / sqrt(fan_in) has a variance of 1 / (3 fan_in): keeps the variance of its input
_MODULATION = 0.3


def set_logvar(vae: Any, value: float) -> None:
    """Sets the half of the encoder's last bias that is the log variance of the latents, ``[latent_channels]``."""
    last = "quant_conv" if vae.config.use_quant_conv else "encoder.conv_out.conv"
    bias = next(p for p in vae.get_parameters() if p.name == f"{last}.bias")
    array = bias.asnumpy().copy()
    array[vae.config.latent_channels :] = value
    vae.assign(bias.name, array)


def start_linear(vae: Any, branch: float) -> None:
    """Rescales freshly drawn weights (U(-b, b), b = 1 / sqrt(fan_in)) so that the residual path dominates.

    The last convolution of every residual block is multiplied by ``branch``, the other convolutions keep the variance
    of what they read, biases are 0, and the decoder's norms begin with a scale around 1 instead of around 0. As drawn,
    each convolution of the residual path shrinks it to a third of its variance while the blocks add functions of
    normalised features, which do not know absolute colour: places are learnt, colours hardly (docs/design/010).
    """
    for parameter in vae.get_parameters():
        name = parameter.name
        if ".norm_layer." in name or "norm" in name.split(".")[-2]:
            continue
        if name.endswith(".bias"):
            value = np.full(parameter.shape, 1.0 if ".conv_y." in name else 0.0, np.float32)
        else:
            value = parameter.asnumpy() * np.float32(_factor(name, branch))
        vae.assign(name, value)
    last = next(p for p in vae.get_parameters() if p.name == "encoder.conv_out.conv.weight")
    value = last.asnumpy().copy()
    value[vae.config.latent_channels :] *= 0.1  # the noise begins alike everywhere
    vae.assign(last.name, value)


def _factor(name: str, branch: float) -> float:
    if ".conv2." in name:
        return branch
    if ".conv_y." in name:
        return _MODULATION
    return 1.0 if ".conv_b." in name or ".conv_out." in name else _GAIN
