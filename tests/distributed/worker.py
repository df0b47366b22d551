"""One rank: runs every case of a module and writes what it returns. Started by ``run_ranks`` through msrun."""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def _on_a_core_of_its_own() -> None:
    """Before MindSpore counts cores for its threads, which spin against those of the other ranks."""
    rank = os.environ.get("RANK_ID")
    if rank is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(rank) % len(cores)]})


def main(module: str, folder: Path, *wanted: str) -> None:
    """Runs the functions ``case_*`` of ``module`` in order of definition (or those named ``wanted``)."""
    _on_a_core_of_its_own()
    import mindspore as ms
    from mindspore import communication

    os.chdir(folder)
    ms.set_device("CPU")
    # One thread for each purpose: the ranks share two cores.
    context: Any = ms.device_context  # chosen at run time; the type checker knows other devices only
    context.cpu.op_tuning.threads_num(1)
    ms.runtime.dispatch_threads_num(1)
    communication.init()
    from core import ops

    ops.configure()
    cases = importlib.import_module(module)
    functions = {name[5:]: value for name, value in vars(cases).items() if name.startswith("case_")}
    rank = communication.get_rank()
    for name in wanted or functions:
        start = time.perf_counter()
        arrays = {key: np.asarray(value) for key, value in functions[name]().items()}
        np.savez(folder / f"{name}-{rank}.part.npz", **arrays)
        os.replace(folder / f"{name}-{rank}.part.npz", folder / f"{name}-{rank}.npz")
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
