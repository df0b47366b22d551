"""Gradients of whole parameters (ZeRO stages 0 and 1) summed in buckets while the backward pass still computes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mindspore as ms
from mindspore import nn, ops

from core.parallel.cut import Cut
from core.parallel.handles import Handle

BUCKET_BYTES = 2**26  # of fp32: large enough for full bandwidth, small beside a block of the 5B model (530 MB)


def buckets(cuts: Sequence[Cut], types: Sequence[Any]) -> Iterator[list[int]]:
    """Indices of tensors of one stored type that travel together."""
    bucket, size = [], 0
    for index, cut in enumerate(cuts):
        full = size + 4 * math.prod(cut.shape) > BUCKET_BYTES
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
        return list(gradients)
    assert len(total) == len(gradients), (len(total), len(gradients))
    for place in range(len(total)):
        total[place] = total[place] + gradients[place].astype(ms.float32)
        gradients[place] = None
    return total


def whole(parameter: ms.Parameter) -> ms.Tensor:
    """The parameter as a tensor, for a Cell with a ``bprop`` to hand out: not as a view, which products would copy."""
    alias: Any = ops.stop_gradient(parameter)
    return alias


class Watched(nn.Cell):
    """Whole parameters as they are; tells ``arrived`` their gradients as soon as the backward pass has them."""

    def __init__(self, arrived: Callable[[Sequence[Any]], None]):
        super().__init__()
        self._arrived = arrived

    def construct(self, *parameters):
        return tuple(whole(q) for q in parameters)

    def bprop(self, *values):
        gradients = values[-1] if isinstance(values[-1], tuple) else (values[-1],)
        self._arrived(gradients)
        return tuple(gradients)


class Reducer:
    """The sums of a step's gradients over the processes, each bucket started as soon as all of it is there.

    Buckets start from the last to the first, about the order in which a backward pass makes them, on every process
    alike; ``finish`` starts those that are left.

    Args:
        cuts, types: of the tensors.
        start: starts the sum of a bucket: ``(its indices, their gradients)``.
    """

    def __init__(self, cuts: Sequence[Cut], types: Sequence[Any], start: Callable[[list[int], list[Any]], Handle]):
        self._buckets, self._start = list(buckets(cuts, types)), start
        self._open = False
        self._reset([])

    def _reset(self, total: Sequence[Any]) -> None:
        self._total = list(total)
        self._found: dict[int, Any] = {}
        self._handles: list[tuple[list[int], Handle]] = []
        self._handed: Counter[int] = Counter()

    def last_backward(self, total: Sequence[Any]) -> None:
        """The forward and backward pass that follows is the step's last; ``total``: the sum of those before it."""
        self._reset(total)
        self._open = True

    def handed(self, places: Sequence[int]) -> None:
        """These tensors are computed with; of one that is handed out twice the gradient comes in two pieces."""
        self._handed.update(places)

    def arrived(self, places: Sequence[int], gradients: Sequence[Any]) -> None:
        """Gradients of the tensors ``places``, from inside the backward pass."""
        if not self._open:
            return
        for place, gradient in zip(places, gradients, strict=True):
            if self._handed[place] == 1:
                self._found[place] = self._sum(place, gradient)
        while (left := self._left()) and all(place in self._found for place in left):
            self._begin(left)

    def finish(self, gradients: Sequence[Any]) -> Iterator[tuple[list[int], Any]]:
        """Each bucket's indices and sum, once the backward pass has returned all ``gradients``."""
        self._open = False
        while left := self._left():
            for place in left:
                if place not in self._found:
                    self._found[place] = self._sum(place, gradients[place])
            self._begin(left)
        handles = self._handles
        self._reset([])
        for bucket, handle in handles:
            yield bucket, handle.wait()

    def _left(self) -> list[int]:
        """The bucket that starts next."""
        place = len(self._buckets) - len(self._handles) - 1
        return self._buckets[place] if place >= 0 else []

    def _begin(self, bucket: list[int]) -> None:
        self._handles.append((bucket, self._start(bucket, [self._found.pop(place) for place in bucket])))

    def _sum(self, place: int, gradient: Any) -> Any:
        if not self._total:
            return gradient
        before, self._total[place] = self._total[place], None
        return added([before], [gradient])[0]
