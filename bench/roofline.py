"""The rate of matrix products that this machine reaches on a model's own shapes: what MFU is measured against.

``python -m bench.roofline PRESET`` prints one line of JSON for ``cogbench doctor --roofline``. Imports MindSpore, so
only child processes use it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

from bench.context import synchronize
from bench.flops import Product, Size, transformer

# Rows are cut so that one product takes well below a second: the rate does not depend on more of them.
MOST_FLOPS = {"CPU": 4_000_000_000, "Ascend": 4_000_000_000_000}
_SHAPES, _REPEATS = 3, 5


def shapes_of(products: Iterable[Product], most: int) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of the linear layers with the most work, largest first, rows cut to ``most`` FLOPs."""
    work: dict[tuple[int, int, int], int] = {}
    for product in products:
        if product.kind == "linear":
            rows = max(1, min(product.rows, most // (2 * product.inner * product.columns)))
            shape = (rows, product.inner, product.columns)
            work[shape] = work.get(shape, 0) + product.flops
    return sorted(work, key=work.__getitem__, reverse=True)[:_SHAPES]


def measure(products: Iterable[Product], device: str, dtype: Any) -> dict[str, Any]:
    """Best rate of each shape through ``core.ops.linear``, and the best of all as ``peak_flops_per_second``."""
    import mindspore as ms  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    from core import ops  # noqa: PLC0415

    found = []
    for rows, inner, columns in shapes_of(products, MOST_FLOPS[device]):
        rng = np.random.default_rng(0)
        arrays = (rng.standard_normal(shape, np.float32) for shape in ((rows, inner), (columns, inner)))
        x, weight = (ms.Tensor(array).astype(dtype) for array in arrays)
        seconds = []
        for _ in range(1 + _REPEATS):  # the first one warms up
            synchronize()
            start = time.perf_counter()
            ops.linear(x, weight)
            synchronize()
            seconds.append(time.perf_counter() - start)
        rate = 2 * rows * inner * columns / min(seconds[1:])
        found.append({"rows": rows, "inner": inner, "columns": columns, "flops_per_second": rate})
    peak = max((shape["flops_per_second"] for shape in found), default=None)
    return {"shapes": found, "peak_flops_per_second": peak, "dtype": str(dtype)}


def main(preset: str) -> int:
    """Measures the block of ``preset`` at a small size, in fp32 on the CPU."""
    import mindspore as ms  # noqa: PLC0415

    from bench.device import start_mindspore  # noqa: PLC0415
    from core.presets import PRESETS  # noqa: PLC0415
    from recipes.schema import Runtime  # noqa: PLC0415

    start_mindspore(Runtime(), seed=0)
    config = PRESETS[preset].transformer
    size = Size(batch=1, frames=config.patch_size_t or 1, height=32, width=32, text_tokens=226)
    print(json.dumps({"probe": "roofline", "preset": preset, **measure(transformer(config, size), "CPU", ms.float32)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
