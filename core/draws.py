"""Random numbers that depend on what they are for, never on the rank or the order in which they are drawn.

A run with another number of cards, a resumed run and a replay see the same numbers. No MindSpore here.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A NumPy generator for one purpose (``"noise"``, ``"timestep"``, ...) at ``indices`` (step, sample, ...)."""
    # The count of indices ends the list: NumPy takes [a, b] and [a, b, 0] for the same seed.
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *indices, len(indices) + 1])


def normal(shape: tuple[int, ...], seed: int, purpose: str, *indices: int) -> np.ndarray:
    """Standard normal float32 array of ``shape`` from ``generator(seed, purpose, *indices)``."""
    return generator(seed, purpose, *indices).standard_normal(shape, np.float32)
