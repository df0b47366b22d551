"""Gradients of whole parameters (ZeRO stages 0 and 1) summed in buckets while the backward pass still computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mindspore as ms

from core.compiling import runtime
from core.parallel.cut import Cut
from core.parallel.handles import Handle
from core.parallel.traffic import BUCKET_BYTES


def buckets(cuts: Sequence[Cut], types: Sequence[Any]) -> Iterator[list[int]]:
    """Indices of tensors of one stored type that travel together."""
    bucket, size = [], 0
    for index, cut in enumerate(cuts):
        full = size + 4 * math.prod(cut.shape) > BUCKET_BYTES[runtime.device]
        if bucket and (full or types[index] != types[bucket[0]]):
            yield bucket
            bucket, size = [], 0
        bucket.append(index)
        size += 4 * math.prod(cut.shape)
    if bucket:
        yield bucket


def added(total: list[Any], gradients: list[Any]) -> list[Any]:
    """The sum of a step's gradients with those of one more micro-batch; ``total`` is empty before the first.

    It is fp32 whatever the gradients' type: eight roundings of bf16 would cost a digit. Both lists are used up: a third
    copy of all gradients never exists.
    """
    if not total:
        total = list(gradients)
        gradients.clear()
        return total
    assert len(total) == len(gradients), (len(total), len(gradients))
    for place in range(len(total)):
        total[place] = total[place] + gradients[place].astype(ms.float32)
        gradients[place] = None
    return total


class Reducer:
    """The sum of a step's gradients over its micro-batches and the processes, each bucket sent as soon as it is whole.

    Buckets start from the last to the first, about the order in which a backward pass makes them, on every process
    alike; ``finish`` starts those that are left.

    Args:
        cuts, types: of the tensors.
        start: starts the sum of a bucket: ``(its indices, their gradients)``; it uses the list up.
    """

    def __init__(self, cuts: Sequence[Cut], types: Sequence[Any], start: Callable[[list[int], list[Any]], Handle]):
        self._buckets, self._start = list(buckets(cuts, types)), start
        self._reset()

    def _reset(self) -> None:
        self._total: dict[int, Any] = {}
        self._found: set[int] = set()
        self._handles: list[tuple[list[int], Handle]] = []
        self._last = False

    def begin(self, *, first: bool, last: bool) -> None:
        """A micro-batch's forward and backward pass begins, a step's ``first`` or ``last``."""
        if first:
            self._reset()
        self._last = last

    def add(self, places: Sequence[int], gradients: list[Any]) -> None:
        """Gradients of the tensors ``places``, from inside the backward pass; the list is used up."""
        for at, place in enumerate(places):
            before = self._total.pop(place, None)
            gradient, gradients[at] = gradients[at], None
            self._total[place] = gradient if before is None else added([before], [gradient])[0]
            before = gradient = None
        if self._last:
            self._found.update(places)
        while (left := self._left()) and all(place in self._found for place in left):
            self._begin(left)

    def lacking(self, places: Sequence[int]) -> list[int]:
        """Those of ``places`` that no micro-batch computed anything with."""
        return [place for place in places if place not in self._total]

    def finish(self) -> Iterator[tuple[list[int], Any]]:
        """Each bucket's indices and sum, once every tensor has a gradient."""
        while left := self._left():
            self._begin(left)
        handles = self._handles
        self._reset()
        for bucket, handle in handles:
            yield bucket, handle.wait()

    def _left(self) -> list[int]:
        """The bucket that starts next."""
        place = len(self._buckets) - len(self._handles) - 1
        return self._buckets[place] if place >= 0 else []

    def _begin(self, bucket: list[int]) -> None:
        self._handles.append((bucket, self._start(bucket, [self._total.pop(place) for place in bucket])))
