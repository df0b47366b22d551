"""Which tensors share one compiled call of an update (``core.optim.foreach``). Without MindSpore: plans use it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

MAX_TENSORS = 8
MAX_BYTES = 2**25  # of one fp32 copy; a larger tensor is a bundle of its own


def bundles(signatures: Sequence[Hashable], sizes: Sequence[int]) -> list[list[int]]:
    """Indices of tensors in bundles of equal signature and, for each signature, equal length.

    Where a count does not divide, the last bundle repeats its last index: another length would be another graph.
    ``sizes`` are elements.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, signature in enumerate(signatures):
        groups.setdefault(signature, []).append(index)
    result = []
    for members in groups.values():
        most = max(1, min(MAX_TENSORS, MAX_BYTES // max(1, 4 * sizes[members[0]])))
        count = math.ceil(len(members) / most)
        length = math.ceil(len(members) / count)
        padded = members + members[-1:] * (count * length - len(members))
        result += [padded[start : start + length] for start in range(0, len(padded), length)]
    return result
