"""Counts what collectives move, by the cost of the real collective. Plain Python, no MindSpore.

Bytes are those that one rank sends in the ring algorithm (the least that is possible for these patterns), n ranks, a
rank's input of b bytes: all-reduce 2 (n - 1) / n b, reduce-scatter (n - 1) / n b, all-gather (n - 1) b, all-to-all
(n - 1) / n b, broadcast b, to the next rank b. What the CPU composes instead (``core.parallel.collectives``) is not
counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# Of tensors that travel together, in fp32. On a card: enough for full bandwidth, small beside a block of the 5B model
# (530 MB). On the CPU, where MindSpore holds a message four times while it is under way, longer ones are cut, too.
BUCKET_BYTES = {"Ascend": 2**26, "CPU": 2**22}
Kind = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "next"]


def sent_bytes(kind: Kind, input_bytes: int, ranks: int) -> int:
    """Bytes that one of ``ranks`` sends in a collective on ``input_bytes`` of its own; rounded up."""
    shares = {
        "all_reduce": 2 * (ranks - 1),
        "reduce_scatter": ranks - 1,
        "all_gather": (ranks - 1) * ranks,
        "all_to_all": ranks - 1,
        "broadcast": ranks if ranks > 1 else 0,
        "next": ranks if ranks > 1 else 0,
    }
    return -(-shares[kind] * input_bytes // ranks)


@dataclass(frozen=True)
class Message:
    """A collective of ``ranks`` processes on ``input_bytes`` of each, for a purpose such as ``sequence``."""

    purpose: str
    kind: Kind
    input_bytes: int
    ranks: int


@dataclass
class Traffic:
    """Running totals of a process: (purpose, kind) -> calls and bytes sent."""

    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    sent: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, message: Message, times: int = 1) -> None:
        """Counts ``message``; one within a single process moves nothing and is not counted."""
        if message.ranks == 1:
            return
        key = (message.purpose, message.kind)
        self.calls[key] = self.calls.get(key, 0) + times
        self.sent[key] = self.sent.get(key, 0) + times * sent_bytes(message.kind, message.input_bytes, message.ranks)

    def table(self) -> dict[str, dict[str, dict[str, int]]]:
        """``{purpose: {kind: {"calls": .., "bytes": ..}}}``, for the record."""
        result: dict[str, dict[str, dict[str, int]]] = {}
        for (purpose, kind), count in sorted(self.calls.items()):
            result.setdefault(purpose, {})[kind] = {"calls": count, "bytes": self.sent[purpose, kind]}
        return result

    def reset(self) -> None:
        """Forgets everything counted so far."""
        self.calls.clear()
        self.sent.clear()
