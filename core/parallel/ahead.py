"""Parameters of the next hand-out are gathered while this one computes (ZeRO stage 3)."""

from __future__ import annotations

from collections.abc import Callable

from core.parallel.handles import Handle

Place = tuple[str, ...]  # the parameters of a hand-out


class Ahead:
    """Remembers in which order a pass gathers, and starts each gathering one early in the next pass.

    In the backward pass blocks come in reverse, which is part of the order. Nothing is fetched across ``begin`` and
    ``end``: parameters move between passes. Every process sees the same order and so starts the same collectives.

    Args:
        start: starts gathering a hand-out's parameters as they are now.
    """

    def __init__(self, start: Callable[[Place], Handle]):
        self._start = start
        self._order: list[Place] = []
        self._seen: list[Place] | None = None
        self._next: tuple[Place, Handle] | None = None

    def begin(self) -> None:
        """A forward and backward pass begins."""
        self.end()
        self._seen = []

    def end(self) -> None:
        """The pass is over: what it gathered is what the next one is expected to."""
        self._drop()
        if self._seen is not None:
            self._order, self._seen = self._seen, None

    def take(self, place: Place) -> Handle:
        """The gathering of ``place``, started now unless it was before; the one after it is under way then, too."""
        handle = None
        if self._next is not None and self._next[0] == place:
            handle, self._next = self._next[1], None
        self._drop()
        handle = handle or self._start(place)
        if self._seen is not None:
            at = len(self._seen)
            self._seen.append(place)
            if self._order[at : at + 1] == [place] and at + 1 < len(self._order):
                following = self._order[at + 1]
                self._next = (following, self._start(following))
        return handle

    def _drop(self) -> None:
        """What was fetched for nothing: another order than expected."""
        if self._next is not None:
            self._next[1].wait()
            self._next = None
