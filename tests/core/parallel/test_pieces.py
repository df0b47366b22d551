"""Collectives in pieces give what whole ones give; with a stand-in for a group whose other process has known values."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import mint

from core import ops
from core.parallel.collectives import _in_pieces
from core.parallel.traffic import BUCKET_BYTES

SIZE = 2


def _whole(sent: list[int]) -> dict[Any, Any]:
    """As process 1 of two, of which process 0 has three times as much; ``sent``: elements of each message."""

    def noted(x, messages):
        sent.append(x.size * messages)
        return x

    def all_reduce(x):
        return noted(x, 1) * 4

    def all_gather(x):
        return mint.cat([noted(x, SIZE) * 3, x], dim=0)

    def reduce_scatter(x):
        return noted(x, 1)[x.shape[0] // SIZE :] * 4

    def all_to_all(x):
        return mint.cat([noted(x, SIZE)[1:] * 3, x[1:]], dim=0)

    return {
        "all_reduce": all_reduce, "all_gather": all_gather, "reduce_scatter": reduce_scatter, "all_to_all": all_to_all,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("all_reduce", (37,)), ("all_reduce", (5, 7)), ("all_gather", (37,)), ("all_gather", (1, 37)),
        ("all_gather", (3, 5, 7)), ("reduce_scatter", (2, 37)), ("reduce_scatter", (6, 11)), ("all_to_all", (2, 5, 7)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pieces_give_what_the_whole_gives(kind, shape, dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ops.configure(mode="pynative")
    x = ms.Tensor(np.arange(np.prod(shape)).reshape(shape).astype(dtype))
    expected = _whole([])[kind](x)
    sent: list[int] = []
    monkeypatch.setitem(BUCKET_BYTES, "CPU", 4 * 16)
    found = _in_pieces(_whole(sent), SIZE)[kind](x)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.asnumpy(), expected.asnumpy())
    assert len(sent) > 1
    assert max(sent) <= 16
    whole: list[int] = []
    monkeypatch.setitem(BUCKET_BYTES, "CPU", 2**22)
    _in_pieces(_whole(whole), SIZE)[kind](x)
    assert len(whole) == 1, "what is small is sent at once"
