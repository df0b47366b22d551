"""Changes of resolution, and modulation of features by latents on a coarser grid, from operators of every device.

B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from mindspore import mint
from mindspore import ops as _ops


def upsample(x, time, space, repeat_nearest):
    """Nearest neighbour ``[B, C, T, H, W] -> [B, C, T', H * space, W * space]`` with a device's ``repeat_nearest``.

    ``T' = T * time`` when T is even; with an odd T the first frame stays one frame: ``T' = 1 + (T - 1) * time``.
    """
    if time == 1:
        return repeat_nearest(x, 1, space)
    if x.shape[2] % 2 == 0:
        return repeat_nearest(x, time, space)
    first = repeat_nearest(x[:, :, :1], 1, space)
    if x.shape[2] == 1:
        return first
    return mint.cat([first, repeat_nearest(x[:, :, 1:], time, space)], 2)


def downsample(x, time):
    """Means of frame pairs ``[B, C, T, H, W] -> [B, C, T', H, W]``: ``T' = T / time`` (1 or 2) when T is even.

    With an odd T the first frame stays as it is: ``T' = 1 + (T - 1) / time``.
    """
    if time == 1 or x.shape[2] == 1:
        return x
    if x.shape[2] % 2 == 0:
        return _mean_of_frame_pairs(x)
    return mint.cat([x[:, :, :1], _mean_of_frame_pairs(x[:, :, 1:])], 2)


def _mean_of_frame_pairs(x):
    batch, channels, frames, height, width = x.shape
    return x.reshape(batch, channels, frames // 2, 2, height, width).mean(3)


def pad_right_bottom(x):
    """One row and one column of zeros after the last: ``[B, C, T, H, W] -> [B, C, T, H + 1, W + 1]``."""
    return _ops.Pad(((0, 0), (0, 0), (0, 0), (0, 1), (0, 1)))(x)  # ops.pad: see core.ops_cpu_conv


def _time_factor(frames, latent_frames):
    if frames == latent_frames:
        return 1
    if frames % 2 == 1:
        return (frames - 1) // (latent_frames - 1)
    return frames // latent_frames


def modulated(x, scale, shift, repeat_nearest):
    """``x * up(scale) + up(shift)``; scale and shift ``[B, C, t, h, w]``. Shape of x unchanged."""
    time = _time_factor(x.shape[2], scale.shape[2])
    space = x.shape[3] // scale.shape[3]
    return x * upsample(scale, time, space, repeat_nearest) + upsample(shift, time, space, repeat_nearest)
