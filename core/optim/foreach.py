"""One update of many tensors in few compiled calls.

A call into a graph costs the same for a bias as for a large matrix, so a call for each tensor is mostly overhead when
tensors are small; one graph over all tensors takes long to compile for a large model and holds every new value beside
every old one, which doubles the optimiser's memory. In between: tensors of equal signature are cut into bundles of at
most ``MAX_TENSORS`` and ``MAX_BYTES``, all bundles of a signature have one size, and so one graph serves them all. Only
where all tensors together are small do they share a graph for each type and set of constants.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import mindspore as ms

from core import ops

MAX_TENSORS = 8
MAX_BYTES = 2**25  # of one fp32 copy; a larger tensor is a bundle of its own
SMALL_BYTES = 2**24  # of one fp32 copy of all tensors: so little is bundled whatever the shapes are
SMALL_TENSORS = 32  # in such a bundle; MindSpore unrolls loops by recursion, and its depth is limited


def bundles(signatures: Sequence[Hashable], sizes: Sequence[int]) -> list[list[int]]:
    """Indices of tensors in bundles of equal signature and, for each signature, equal length.

    Where a count does not divide, the last bundle repeats its last index: another length would be another graph.
    ``sizes`` are elements.
    """
    result = []
    for members in groups_of(signatures):
        most = max(1, min(MAX_TENSORS, MAX_BYTES // max(1, 4 * sizes[members[0]])))
        count = math.ceil(len(members) / most)
        length = math.ceil(len(members) / count)
        padded = members + members[-1:] * (count * length - len(members))
        result += [padded[start : start + length] for start in range(0, len(padded), length)]
    return result


def groups_of(signatures: Sequence[Hashable]) -> list[list[int]]:
    """Indices of equal signatures together, in the order of their first."""
    groups: dict[Hashable, list[int]] = {}
    for index, signature in enumerate(signatures):
        groups.setdefault(signature, []).append(index)
    return list(groups.values())


def _cut(members: list[int]) -> list[list[int]]:
    return [members[start : start + SMALL_TENSORS] for start in range(0, len(members), SMALL_TENSORS)]


class ForEach:
    """Runs a pure ``update(one, *scalars, **static)`` for each of many tensors.

    Args:
        update: ``one`` maps fields to tensors; returns a tuple of tensors.
        shapes: shape of each tensor.
        types: its type, or whatever else tells signatures apart.
        statics: keyword arguments of ``update`` for each tensor: hashable, compiled in.
        in_place: ``in_place([one, ...], *scalars, **static) -> [results, ...]``, the same for a bundle without a graph:
            the results are tensors of ``one`` with new values. None where it cannot; then ``update`` is compiled.
        bundled: whether ``update`` takes all tensors of a bundle, a list, and returns the results of each behind those
            of the one before: for what is exchanged between processes in one message.
    """

    def __init__(
        self,
        update: Callable,
        shapes: Sequence[tuple[int, ...]],
        types: Sequence[Hashable],
        statics: Sequence[dict[str, Any]],
        in_place: Callable | None = None,
        *,
        bundled: bool = False,
    ):
        self.in_place, self._bundled = in_place, bundled
        self._shapes, self._types = list(shapes), list(types)
        self.statics = list(statics)
        keys = [
            (tuple(shape), kind, tuple(sorted(static.items(), key=lambda item: item[0])))
            for shape, kind, static in zip(shapes, types, statics, strict=True)
        ]
        sizes = [math.prod(shape) for shape in shapes]
        small = 4 * sum(sizes) <= SMALL_BYTES
        self.bundles = (
            [part for whole in groups_of([key[1:] for key in keys]) for part in _cut(whole)]
            if small
            else bundles(keys, sizes)
        )
        self.update = update

    def of(self, places: Sequence[int]) -> ForEach:
        """The same for the tensors of these numbers, which are numbered anew."""
        shapes, types = [self._shapes[place] for place in places], [self._types[place] for place in places]
        statics = [self.statics[place] for place in places]
        return ForEach(self.update, shapes, types, statics, self.in_place, bundled=self._bundled)

    def __call__(
        self, read: Callable[[int], dict[str, ms.Tensor]], write: Callable[[int, tuple], None], *scalars: ms.Tensor
    ) -> None:
        """``read(i)`` gives the fields of tensor i, ``write(i, values)`` takes its results.

        Reads and writes alternate bundle by bundle, so no more than one bundle exists twice.
        """
        for indices in self.bundles:
            if self.in_place is not None and self._try_in_place(indices, read, write, scalars):
                continue
            p = {}
            for place, index in enumerate(indices):
                p |= {f"{field}.{place}": _argument(tensor) for field, tensor in read(index).items()}
            fields = tuple(name.removesuffix(".0") for name in p if name.endswith(".0"))
            names = tuple(tuple(f"{field}.{place}" for field in fields) for place in range(len(indices)))
            results = _compiled(self.update, self._bundled)(
                p, *scalars, fields=fields, names=names, **self.statics[indices[0]]
            )
            width = len(results) // len(indices)
            for place, index in enumerate(dict.fromkeys(indices)):
                write(index, results[place * width : (place + 1) * width])

    def _try_in_place(self, indices: list[int], read: Callable, write: Callable, scalars: Sequence[ms.Tensor]) -> bool:
        """Whether ``in_place`` did it."""
        assert self.in_place is not None
        own = list(dict.fromkeys(indices))
        found = self.in_place([read(index) for index in own], *scalars, **self.statics[own[0]])
        if found is None:
            return False
        for index, results in zip(own, found, strict=True):
            write(index, results)
        return True


def _argument(tensor: ms.Tensor) -> ms.Tensor:
    """A view of a Parameter, which would be compiled anew for each."""
    return tensor.view(tensor.shape) if isinstance(tensor, ms.Parameter) else tensor


@functools.cache
def _compiled(update: Callable, bundled: bool) -> Callable:
    """One for all users of ``update``: its graphs serve every optimiser of a process."""
    return ops.compiled(_side_by_side(update) if bundled else _over_bundle(update))


def _side_by_side(update: Callable) -> Callable:
    def side_by_side(p, *scalars, fields, names, **static):
        ones = []
        for group in names:
            one = {}
            for j in range(len(fields)):
                one[fields[j]] = p[group[j]]
            ones.append(one)
        return update(ones, *scalars, **static)

    return side_by_side


def _over_bundle(update: Callable) -> Callable:
    def over_bundle(p, *scalars, fields, names, **static):
        results = ()
        for group in names:
            one = {}
            for j in range(len(fields)):
                one[fields[j]] = p[group[j]]
            results = results + update(one, *scalars, **static)
        return results

    return over_bundle
