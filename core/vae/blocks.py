"""The VAE's blocks as pure functions over a block's parameters ``p``.

B batch, C channels, T frames, H height, W width; ``z [B, L, t, h, w]`` are the latents that condition the decoder's
norms, each of t, h, w dividing (after the first frame) the T, H, W of the features.

A compiled graph keeps its buffers, and every shape has its own: whole compiled resnets made a decode's peak memory a
multiple of what it is. So only norm + SiLU is compiled, and that only where it is made of several operators: norms gain
speed from compiling then, convolutions do not, and norms of one shape share a graph.

Where norms are our own kernels, a block outside a compiled function goes without everything that is only read once
(``core.ops.norm_conv3d``): of the widest features only a resnet's input and two results exist at a time.
"""

from __future__ import annotations

import mindspore as ms

from core import ops, ops_modulation
from core.vae.conv import causal_conv3d, conv, copied, handed_over_conv, handed_over_conv3d

SPATIAL_NORM_EPS = 1e-6  # fixed in the reference, whatever norm_eps says


def upsample(x, time, space):
    """Nearest neighbour ``[B, C, T, H, W] -> [B, C, T', H * space, W * space]``.

    ``T' = T * time`` when T is even; with an odd T the first frame stays one frame: ``T' = 1 + (T - 1) * time``.
    """
    return ops_modulation.upsample(x, time, space, ops.repeat_nearest)


def _modulation(p, z):
    """Norm's weight and bias, and the scale and shift that the latents give its result (None without latents)."""
    if z is None:
        return p["weight"], p["bias"], None, None
    scale = ops.conv3d(z, p["conv_y.conv.weight"], p["conv_y.conv.bias"], 1, (0, 0, 0))
    shift = ops.conv3d(z, p["conv_b.conv.weight"], p["conv_b.conv.bias"], 1, (0, 0, 0))
    return p["norm_layer.weight"], p["norm_layer.bias"], scale, shift


def norm_silu(p, x, z, *, groups, eps):
    """SiLU of the GroupNorm of ``x [B, C, T, H, W]``, modulated by the latents ``z`` unless None. Shape unchanged.

    ``y = GroupNorm(x) * conv_y(up(z)) + conv_b(up(z))`` (arXiv 2209.09002); the 1x1x1 convolutions commute with
    nearest-neighbour upsampling, so they run at the latents' size.
    """
    weight, bias, scale, shift = _modulation(p, z)
    return ops.group_norm_silu(x, groups, weight, bias, eps if z is None else SPATIAL_NORM_EPS, scale, shift)


_compiled_norm_silu = ops.compiled(norm_silu)


def lone_norm_silu(p, x, z, *, groups, eps):
    """``norm_silu`` outside a compiled block: compiled by itself, unless one kernel does it all anyway."""
    run = norm_silu if ops.norms_are_kernels() else _compiled_norm_silu
    return run(p, x, z, groups=groups, eps=eps)


def _norm_silu(whole):
    """Inside a block that is compiled as a whole the norm is part of its graph."""
    return norm_silu if whole else lone_norm_silu


def _causal(whole, cache):
    """The convolution that takes such a ``cache``: in a compiled block always a tensor or None."""
    if whole:
        return causal_conv3d
    return handed_over_conv3d if callable(cache) else causal_conv3d


def lone_conv(p, x, cache):
    """``conv`` outside a compiled function, for any ``cache``."""
    if callable(cache):
        return handed_over_conv(p, x, cache)
    return ops.causal_conv3d(x, cache, p["conv.weight"], p["conv.bias"]) if fuses(x) else conv(p, x, cache)


def _inside(p, name):
    return {key[len(name) + 1 :]: tensor for key, tensor in p.items() if key.startswith(name + ".")}


def fuses(x):
    """Whether blocks outside compiled functions take the way that makes fewer tensors."""
    return ops.norms_are_kernels() and x.dtype == ms.float32


def norm_conv(norm, convolution, x, z, cache, *, groups, eps, added=None):
    """``causal_conv3d`` of ``norm_silu`` in one operator, see ``fuses``: ``-> ([B, O, T, H, W] + added, cache)``.

    ``norm``, ``convolution``: what ``Handed.inside`` gives; a kernel on the disk is read right before.
    """
    weight, bias, scale, shift = _modulation(norm, z)
    eps = eps if z is None else SPATIAL_NORM_EPS
    handed_over = callable(cache)
    if handed_over:
        # The norm twice, which costs less time than its result would cost memory beside the convolution's.
        h = ops.group_norm_silu(x, groups, weight, bias, eps, scale, shift)
        end = copied(h[:, :, h.shape[2] + 1 - convolution.unread("conv.weight").shape[2] :])
        h = None
        cache = cache(end)
    y, new = ops.norm_conv3d(
        x, groups, weight, bias, eps, scale, shift, cache, convolution["conv.weight"], convolution["conv.bias"], added
    )
    return y, None if handed_over else new


def _fused_resnet(p, x, z, cache1, cache2, *, groups, eps):
    shortcut = "conv_shortcut.weight" in p
    one, two = [(p.inside(f"norm{n}"), p.inside(f"conv{n}")) for n in (1, 2)]
    h, cache1 = norm_conv(*one, x, z, cache1, groups=groups, eps=eps)
    h, cache2 = norm_conv(*two, h, z, cache2, groups=groups, eps=eps, added=None if shortcut else x)
    if shortcut:
        h = ops.conv3d_added(x, p["conv_shortcut.weight"], p["conv_shortcut.bias"], 1, (0, 0, 0), h)
    return h, cache1, cache2


def resnet(p, x, z, cache1, cache2, *, groups, eps, whole=False):
    """Residual block ``x [B, C, T, H, W] -> ([B, C', T, H, W], cache1, cache2)``; ``z`` is None in the encoder.

    ``whole``: the caller compiles the block.
    """
    if not whole and fuses(x):
        return _fused_resnet(p, x, z, cache1, cache2, groups=groups, eps=eps)
    # The norms' results have no name here: the convolution lets go of them when it has joined them to the cache.
    h, cache1 = _causal(whole, cache1)(
        _norm_silu(whole)(_inside(p, "norm1"), x, z, groups=groups, eps=eps),
        p["conv1.conv.weight"], p["conv1.conv.bias"], cache1,
    )  # fmt: skip
    h, cache2 = _causal(whole, cache2)(
        _norm_silu(whole)(_inside(p, "norm2"), h, z, groups=groups, eps=eps),
        p["conv2.conv.weight"], p["conv2.conv.bias"], cache2,
    )  # fmt: skip
    if "conv_shortcut.weight" in p:
        x = pointwise(_inside(p, "conv_shortcut"), x)
    return h + x, cache1, cache2


def _conv_frames(x, weight, bias, stride, padding):
    """A convolution of each frame ``[B, C, T, H, W] -> [B, O, T, H', W']``: three-dimensional with one tap in time, so
    that the frames need not be brought to the front and back, which would copy the widest features twice."""
    sides = (0, padding, padding)
    return ops.conv3d(x, _of_frames(weight), bias, (1, stride, stride), sides)


def _of_frames(weight):
    return weight.reshape(*weight.shape[:2], 1, *weight.shape[2:])


def downsample(p, x, *, compress_time):
    """``[B, C, T, H, W] -> [B, C, T', H/2, W/2]``: means of frame pairs, then a stride-2 convolution of each frame.

    ``compress_time`` halves T; with an odd T the first frame stays alone: ``T' = (T + 1) // 2``.
    """
    x = ops_modulation.downsample(x, 2 if compress_time else 1)
    return _conv_frames(ops_modulation.pad_right_bottom(x), p["conv.weight"], p["conv.bias"], 2, 0)


def lone_downsample(p, x, *, compress_time):
    """``downsample`` outside a compiled block: where ``fuses``, what the convolution reads never exists."""
    if not fuses(x):
        return downsample(p, x, compress_time=compress_time)
    return ops.downsampled_conv3d(x, 2 if compress_time else 1, _of_frames(p["conv.weight"]), p["conv.bias"])


def upsampler(p, x, *, expand_time):
    """``[B, C, T, H, W] -> [B, C, T', 2H, 2W]``: nearest neighbour, then a convolution of each frame."""
    x = upsample(x, 2 if expand_time else 1, 2)
    return _conv_frames(x, p["conv.weight"], p["conv.bias"], 1, 1)


def lone_upsampler(p, x, *, expand_time):
    """``upsampler`` outside a compiled block: where ``fuses``, the widened features never exist."""
    if not fuses(x):
        return upsampler(p, x, expand_time=expand_time)
    return ops.upsampled_conv3d(x, 2 if expand_time else 1, _of_frames(p["conv.weight"]), p["conv.bias"])


def pointwise(p, x):
    """1x1x1 convolution ``[B, C, T, H, W] -> [B, O, T, H, W]``."""
    return ops.conv3d(x, p["weight"], p["bias"], 1, (0, 0, 0))


def resnets(p, name, count, x, z, *, groups, eps):
    """``count`` residual blocks of the first chunk: no cache comes in, none is kept."""
    for i in range(count):
        x, _, _ = resnet(_inside(p, f"{name}.resnets.{i}"), x, z, None, None, groups=groups, eps=eps, whole=True)
    return x


def encoder(p, x, *, levels, layers, mid, temporal, groups, eps):
    """The encoder over one chunk without a cache, as one function: ``[B, 3, T, H, W] -> [B, 2 C, t, h, w]``."""
    x, _ = conv(_inside(p, "conv_in"), x, None)
    for i in range(levels):
        x = resnets(p, f"down_blocks.{i}", layers, x, None, groups=groups, eps=eps)
        if i < levels - 1:
            x = downsample(_inside(p, f"down_blocks.{i}.downsamplers.0"), x, compress_time=i < temporal)
    x = resnets(p, "mid_block", mid, x, None, groups=groups, eps=eps)
    x = norm_silu(_inside(p, "norm_out"), x, None, groups=groups, eps=SPATIAL_NORM_EPS)
    x, _ = conv(_inside(p, "conv_out"), x, None)
    return x


def decoder(p, z, *, levels, layers, mid, temporal, groups, eps):
    """The decoder over one chunk without a cache, as one function: ``[B, C, t, h, w] -> [B, 3, T, H, W]``."""
    x, _ = conv(_inside(p, "conv_in"), z, None)
    x = resnets(p, "mid_block", mid, x, z, groups=groups, eps=eps)
    for i in range(levels):
        x = resnets(p, f"up_blocks.{i}", layers + 1, x, z, groups=groups, eps=eps)
        if i < levels - 1:
            x = upsampler(_inside(p, f"up_blocks.{i}.upsamplers.0"), x, expand_time=i < temporal)
    x = norm_silu(_inside(p, "norm_out"), x, z, groups=groups, eps=SPATIAL_NORM_EPS)
    x, _ = conv(_inside(p, "conv_out"), x, None)
    return x


compiled_encoder = ops.compiled(encoder)
compiled_decoder = ops.compiled(decoder)
compiled_resnet = ops.compiled(resnet)
compiled_conv = ops.compiled(conv)
compiled_downsample = ops.compiled(downsample)
compiled_upsampler = ops.compiled(upsampler)
