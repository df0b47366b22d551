"""Parts of several tensors on the wire: one collective for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
from mindspore import mint, nn

from core.parallel.ahead import Ahead
from core.parallel.arriving import whole
from core.parallel.collectives import Group
from core.parallel.cut import Cut
from core.parallel.handles import Handle


@dataclass(frozen=True)
class Gathering:
    """Gathers and scatters the tensors of one hand-out in one collective; equal for equal shapes.

    ``names`` are those in the hand-out; ``stored`` is the type that whole tensors have and travel in, ``computed`` the
    type that they are handed out in. Gradients are rounded to ``stored``, as those of a whole parameter are, and summed
    in fp32. ``place``: which hand-out this is, by its parameters; ``ahead`` gathers it where the one before begins.
    """

    group: Group
    names: tuple[str, ...]
    cuts: tuple[Cut, ...]
    stored: Any
    computed: Any
    place: tuple[str, ...] = field(default=(), compare=False)
    ahead: Ahead | None = field(default=None, compare=False)

    def gather(self, parts: Sequence[Any]) -> list[Any]:
        """Own fp32 parts -> whole tensors."""
        flat = self._joined(parts) if self.ahead is None else self.ahead.take(self.place).wait()
        if self.ahead is None:
            flat = self.group.all_gather(flat, "parameters")
        return self._split(flat.astype(self.computed), whole=True)

    def start_gather(self, parts: Sequence[Any]) -> Handle:
        """``gather``'s message."""
        return self.group.start("all_gather", self._joined(parts), "parameters")

    def scatter(self, gradients: Sequence[Any]) -> list[Any]:
        """Own gradients of the whole tensors -> fp32 parts of their sum over the processes."""
        return self.parts(self.group.reduce_scatter(self._spread(gradients), "gradients"))

    def start_scatter(self, gradients: list[Any]) -> Handle:
        """``scatter``'s message, of whose result ``parts`` makes tensors; the list is used up."""
        spread = self._spread(gradients)
        gradients.clear()
        return self.group.start("reduce_scatter", spread, "gradients")

    def parts(self, flat: Any) -> list[Any]:
        """What was scattered -> the parts."""
        return self._split(flat, whole=False)

    def _joined(self, parts: Sequence[Any]) -> Any:
        return mint.cat([part.astype(self.stored).reshape(1, -1) for part in parts], dim=1)

    def _spread(self, gradients: Sequence[Any]) -> Any:
        rounded = [g.astype(self.stored).astype(ms.float32) for g in gradients]
        return mint.cat([cut.spread(g) for cut, g in zip(self.cuts, rounded, strict=True)], dim=1)

    def _split(self, flat: Any, *, whole: bool) -> list[Any]:
        tensors, start = [], 0
        for cut in self.cuts:
            piece = flat[:, start : start + cut.part_size]
            tensors.append(cut.assembled(piece) if whole else piece.reshape(cut.part_shape))
            start += cut.part_size
        return tensors


class HandOut(nn.Cell):
    """Own parts in, whole parameters out; its gradient reduces and scatters, so whole gradients live for one block.

    ``resident``: the whole parameters where they are kept (stage 2); None gathers them (stage 3).
    """

    def __init__(self, gathering: Gathering, resident: Sequence[ms.Parameter] | None):
        super().__init__()
        self._gathering = gathering
        self._resident = None if resident is None else tuple(resident)

    def construct(self, *parts):
        if self._resident is None:
            return tuple(self._gathering.gather(parts))
        return tuple(whole(q) for q in self._resident)

    def bprop(self, *values):
        gradients = values[-1]
        return tuple(self._gathering.scatter(gradients if isinstance(gradients, tuple) else (gradients,)))
