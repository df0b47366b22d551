from __future__ import annotations

import threading
import time

import pytest

from core.data.prefetch import prefetch
from core.errors import UserError


def test_prefetch_keeps_order_raises_errors_and_ends_its_thread():
    assert list(prefetch(range(20), 3)) == list(range(20))
    assert list(prefetch(range(3), 0)) == [0, 1, 2]

    def broken():
        yield 1
        raise UserError("clip 2 is damaged")

    items = prefetch(broken(), 2)
    assert next(items) == 1
    with pytest.raises(UserError, match="clip 2 is damaged"):
        next(items)
    endless = prefetch(iter(int, 1), 2)
    assert [next(endless) for _ in range(3)] == [0, 0, 0]
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_reads_ahead_but_not_further_than_its_depth():
    made = []
    items = prefetch((made.append(i) or i for i in range(50)), 2)
    next(items)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    # One taken, two waiting, one in the thread's hand.
    assert len(made) == 4
    items.close()
