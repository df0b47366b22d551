"""Which of the T training time steps a sampler visits. See docs/design/004-timesteps.md.

Every function returns n strictly decreasing integers in [0, T - 1] as int64 ``[n]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import UserError

PUBLISHED = ("trailing", "linspace", "leading")
KINDS = (*PUBLISHED, "linear-quadratic")


def trailing(n: int, total: int) -> np.ndarray:
    """Evenly from T - 1 downwards; the last step jumps to clean data (arXiv:2305.08891, table 2).

    The published code computes an extra time step of -1 for 62 values of n (61, 103, ...), a rounding accident of a
    floating-point range; it is dropped here.
    """
    return np.round(np.arange(total, 0, -total / n)).astype(np.int64)[:n] - 1


def linspace(n: int, total: int) -> np.ndarray:
    """Evenly with both ends, T - 1 and 0; n = 1 gives only 0, as published."""
    return np.linspace(0, total - 1, n).round()[::-1].astype(np.int64)


def leading(n: int, total: int, offset: int = 0) -> np.ndarray:
    """Multiples of T // n from ``offset`` upwards, reversed: never reaches T - 1 unless n = T."""
    return np.arange(n, dtype=np.int64)[::-1] * (total // n) + offset


def linear_quadratic(n: int, total: int) -> np.ndarray:
    """First ceil(n/2) steps one apart from T - 1, then quadratically growing ones towards clean data.

    After arXiv:2410.13720 (Movie Gen), section 3.4, there for flow matching; the discrete form is ours.
    """
    linear = (n + 1) // 2
    parts = (n - linear + 1) ** 2
    found: list[int] = []
    for i in range(n):
        if i < linear:
            wanted = total - 1 - i
        else:
            left = (total - linear + 1) * (parts - (i - linear + 1) ** 2)
            wanted = (2 * left + parts) // (2 * parts) - 1  # left / parts rounded half up, in integers
        # At most one below its predecessor's place, and high enough for those that follow.
        found.append(max(min(wanted, found[-1] - 1) if found else wanted, n - 1 - i))
    return np.array(found, np.int64)


def spaced(kind: str, n: int, total: int, offset: int = 0) -> np.ndarray:
    """Time steps of the named kind; ``offset`` matters to ``leading`` only.

    Raises:
        UserError: unknown kind, n outside [1, T], or an offset that leaves the range.
    """
    if kind not in KINDS:
        raise UserError(f"timesteps: got {kind!r}, need one of {', '.join(KINDS)} or a list of integers")
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= total:
        raise UserError(f"steps: got {n!r}, need a whole number from 1 to {total} (the training time steps)")
    if kind == "leading":
        return checked(leading(n, total, offset), total)
    return {"trailing": trailing, "linspace": linspace, "linear-quadratic": linear_quadratic}[kind](n, total)


def checked(values: Sequence[Any] | np.ndarray, total: int) -> np.ndarray:
    """A list of time steps as int64 ``[n]`` if it is legal.

    Raises:
        UserError: empty, not whole numbers, not strictly decreasing, or outside [0, T - 1]; names the first culprit.
    """
    items = list(values)
    if not items:
        raise UserError(f"timesteps: got an empty list, need strictly decreasing integers from [0, {total - 1}]")
    for i, value in enumerate(items):
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise UserError(f"timesteps[{i}]: got {value!r}, need a whole number from 0 to {total - 1}")
        if not 0 <= value < total:
            raise UserError(f"timesteps[{i}]: got {value}, need a whole number from 0 to {total - 1}")
        if i and value >= items[i - 1]:
            raise UserError(f"timesteps[{i}]: got {value} after {items[i - 1]}, need strictly decreasing values")
    return np.array(items, np.int64)
