"""Convolution that is causal in time, and whose memory of the previous chunk is an argument and a result.

B batch, C/O channels, T frames, H height, W width.
"""

from __future__ import annotations

from mindspore import mint

from core import ops


def copied(x):
    """The same frames in memory of their own: a slice is a view in PyNative, which would keep the whole of ``x``."""
    frames = x.shape[2]
    return x if frames == 1 else mint.cat([x[:, :, i : i + 1] for i in range(frames)], 2)


def causal_conv3d(x, weight, bias, cache):
    """Convolves ``x [B, C, T, H, W]`` with ``weight [O, C, kt, kh, kw]`` -> ``([B, O, T, H, W], new cache)``.

    A frame sees itself and the ``kt - 1`` frames before it: ``cache [B, C, kt - 1, H, W]`` holds those that precede
    this chunk, None repeats the chunk's first frame (CogVideoX, arXiv 2408.06072, section 2.1). Height and width are
    padded with zeros. The new cache is the argument of the next chunk's call.
    """
    memory = weight.shape[2] - 1
    # One name throughout: where the caller keeps none either, ``x`` is free before the convolution begins.
    x = mint.cat([x[:, :, :1]] * memory + [x], 2) if cache is None else mint.cat([cache, x], 2)
    y = ops.conv3d(x, weight, bias, 1, (0, weight.shape[3] // 2, weight.shape[4] // 2))
    return y, copied(x[:, :, x.shape[2] - memory :])


def handed_over_conv3d(x, weight, bias, before):
    """``causal_conv3d`` where ``before(own last frames)`` gives the frames before this chunk, or None: ``(y, None)``.

    For a chunk whose neighbours other processes have (``core.vae.over_time``); not for compiled functions.
    """
    memory = weight.shape[2] - 1
    assert x.shape[2] >= memory, "the frames handed over are the chunk's own"
    cache = before(copied(x[:, :, x.shape[2] - memory :]))
    x = mint.cat([x[:, :, :1]] * memory + [x], 2) if cache is None else mint.cat([cache, x], 2)
    cache = None
    return ops.conv3d(x, weight, bias, 1, (0, weight.shape[3] // 2, weight.shape[4] // 2)), None


def handed_over_conv(p, x, before):
    """``handed_over_conv3d`` with the weights of the block ``p``."""
    return handed_over_conv3d(x, p["conv.weight"], p["conv.bias"], before)


def conv(p, x, cache):
    """``causal_conv3d`` with the ``conv.weight`` and ``conv.bias`` of the block ``p``."""
    return causal_conv3d(x, p["conv.weight"], p["conv.bias"], cache)
