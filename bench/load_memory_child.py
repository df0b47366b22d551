"""One process that loads a transformer and counts its memory: ``python -m bench.load_memory_child JOB`` (JSON)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.memory import process_hwm_bytes, reset_hwm


def main(text: str) -> None:
    """Runs the job and prints its line."""
    job = json.loads(text)
    import mindspore as ms  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    from core import ops, weights  # noqa: PLC0415

    ms.set_device("CPU")
    ops.configure(device="CPU", mode="pynative")
    # Loads what any computation needs: it belongs to the empty process.
    ms.Tensor(np.ones(8, np.float32)).astype(ms.bfloat16).astype(ms.float32).asnumpy()
    reset_hwm()
    marks: dict[str, Any] = {"empty": process_hwm_bytes()}
    model = weights.load_transformer(job["folder"], job["dtype"])
    ms.runtime.synchronize()
    marks["loading"] = process_hwm_bytes()
    if job["save"] is not None:
        reset_hwm()
        weights.save_transformer(model, Path(job["save"]), job["dtype"], job["shard"])
        marks["saving"] = process_hwm_bytes()
    print(json.dumps(marks), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
