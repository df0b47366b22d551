"""A collective under way: started where its input is there, waited for where its result is needed."""

from __future__ import annotations

from typing import Any


class Handle:
    """What ``Group.start`` returns. On the CPU the collective is done before it is returned.

    ``pending``: HCCL's handle (``mindspore.mint.distributed``, ``async_op``), None where there is nothing to wait for.
    """

    def __init__(self, result: Any, pending: Any = None):
        self._result, self._pending = result, pending

    def wait(self) -> Any:
        """The result, for what is computed from here on."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        return self._result


def start_hccl(kind: str, x: Any, size: int, name: str) -> Handle:
    """Starts an all-reduce, all-gather or reduce-scatter of ``x [m, ...]`` in the HCCL group ``name``. Not measured."""
    from mindspore import mint  # noqa: PLC0415
    from mindspore.mint import distributed  # noqa: PLC0415 - Ascend only

    if kind == "all_reduce":
        result = x.copy()  # it is reduced in place
        return Handle(result, distributed.all_reduce(result, group=name, async_op=True))
    rows = x.shape[0] * size if kind == "all_gather" else x.shape[0] // size
    result = mint.zeros((rows, *x.shape[1:]), dtype=x.dtype)
    run = distributed.all_gather_into_tensor if kind == "all_gather" else distributed.reduce_scatter_tensor
    return Handle(result, run(result, x, group=name, async_op=True))
