"""Positions of the video tokens: rotary (5B, 1.5) and sincos (2B) tables. Pure NumPy functions of shapes.

Letters: T, H, W token grid (latent frames and pixels divided by the patch), K head size, D model width.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from core.configs import TransformerConfig

THETA = 10000.0


def _axis_angles(dim: int, positions: np.ndarray) -> np.ndarray:
    """Angles ``[len(positions), dim]`` of one axis: each frequency twice in a row, fp32 as in the reference."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = np.float32(1.0) / np.power(np.float32(THETA), exponents)
    return np.repeat(np.outer(positions.astype(np.float32), frequencies), 2, axis=1)


def rotary_table(
    head_dim: int, positions_T: np.ndarray, positions_H: np.ndarray, positions_W: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines ``[T*H*W, K]``: a quarter of the head for time, three eighths each for height and width."""
    dim_t, dim_hw = head_dim // 4, head_dim // 8 * 3
    t, h, w = len(positions_T), len(positions_H), len(positions_W)
    angles = [
        np.broadcast_to(_axis_angles(dim_t, positions_T)[:, None, None, :], (t, h, w, dim_t)),
        np.broadcast_to(_axis_angles(dim_hw, positions_H)[None, :, None, :], (t, h, w, dim_hw)),
        np.broadcast_to(_axis_angles(dim_hw, positions_W)[None, None, :, :], (t, h, w, dim_hw)),
    ]
    table = np.concatenate(angles, axis=-1).reshape(t * h * w, -1)
    return np.cos(table), np.sin(table)


def resize_crop_region(grid_H: int, grid_W: int, base_H: int, base_W: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Region ``((top, left), (bottom, right))`` that a grid covers when fitted into the trained base grid (1.0)."""
    if grid_H / grid_W > base_H / base_W:
        height, width = base_H, round(base_H / grid_H * grid_W)
    else:
        height, width = round(base_W / grid_W * grid_H), base_W
    top, left = round((base_H - height) / 2.0), round((base_W - width) / 2.0)
    return (top, left), (top + height, left + width)


def rotary_positions(config: TransformerConfig, t: int, h: int, w: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions along T, H, W of a ``t x h x w`` token grid.

    1.0 stretches every size onto the trained grid (linspace without end point); 1.5 counts tokens. Unlike the
    reference, 1.5 counts on beyond ``sample_height x sample_width``: the integers are the same, no slice can run out.
    """
    positions_T = np.arange(t, dtype=np.float32)
    if config.patch_size_t is not None:
        return positions_T, np.arange(h, dtype=np.float32), np.arange(w, dtype=np.float32)
    base = config.sample_height // config.patch_size, config.sample_width // config.patch_size
    (top, left), (bottom, right) = resize_crop_region(h, w, *base)
    positions_H = np.linspace(top, bottom * (h - 1) / h, h, dtype=np.float32)
    positions_W = np.linspace(left, right * (w - 1) / w, w, dtype=np.float32)
    return positions_T, positions_H, positions_W


def _sincos_axis(dim: int, positions: np.ndarray) -> np.ndarray:
    """``[len(positions), dim]``: sines then cosines, in float64."""
    omega = 1.0 / THETA ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2.0))
    angles = np.outer(positions.astype(np.float64), omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_table(config: TransformerConfig, t: int, h: int, w: int) -> np.ndarray:
    """Sincos positions ``[T*H*W, D]`` fp32: a quarter of the width for time, then width, then height (2B)."""
    dim = config.inner_dim
    dim_t, dim_s = dim // 4, 3 * dim // 4
    scale_s, scale_t = np.float32(config.spatial_interpolation_scale), np.float32(config.temporal_interpolation_scale)
    rows, columns = np.arange(h, dtype=np.float32) / scale_s, np.arange(w, dtype=np.float32) / scale_s
    along_w = np.broadcast_to(_sincos_axis(dim_s // 2, columns)[None], (h, w, dim_s // 2))
    along_h = np.broadcast_to(_sincos_axis(dim_s // 2, rows)[:, None], (h, w, dim_s // 2))
    spatial = np.concatenate([along_w, along_h], axis=-1).reshape(1, h * w, dim_s)
    temporal = _sincos_axis(dim_t, np.arange(t, dtype=np.float32) / scale_t)[:, None]
    table = np.concatenate(
        [np.broadcast_to(temporal, (t, h * w, dim_t)), np.broadcast_to(spatial, (t, h * w, dim_s))], axis=-1
    )
    return table.reshape(t * h * w, dim).astype(np.float32)


@lru_cache(maxsize=16)
def joint_rotary_table(config: TransformerConfig, text_length: int, t: int, h: int, w: int):
    """Cosines and sines ``[L + T*H*W, K]`` of the joint sequence; the text in front is not rotated (1 and 0)."""
    cos, sin = rotary_table(config.attention_head_dim, *rotary_positions(config, t, h, w))
    head_dim = config.attention_head_dim
    ones, zeros = np.ones((text_length, head_dim), np.float32), np.zeros((text_length, head_dim), np.float32)
    return np.concatenate([ones, cos]), np.concatenate([zeros, sin])
