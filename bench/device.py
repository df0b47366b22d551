"""Prepares MindSpore in the child as the recipe's runtime section says; the only place in bench that imports it."""

from __future__ import annotations

import os
from typing import Any

from bench import rank as ranks
from core.errors import UserError


def start_mindspore(runtime: Any, seed: int) -> dict[str, Any]:
    """Sets device, determinism, memory limit and seed, configures ``core.ops``; returns the facts for the record.

    ``runtime`` is the recipe's section (device, mode, jit_level, kernels, deterministic, max_device_memory).
    Called once, before anything is built. One rank of several joins the others and compares notes with them.
    UserError when the device is not there, or when the ranks run different recipes or code.
    """
    import mindspore as ms  # noqa: PLC0415 - seconds to import: only in the child, only when a task needs it

    from core import ops  # noqa: PLC0415

    device = {"cpu": "CPU", "ascend": "Ascend"}[runtime.device]
    try:
        ms.set_device(device)
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"runtime.device: got {runtime.device}, but this MindSpore can't use it ({first}): "
            "install the Ascend build with CANN, or set runtime.device=cpu"
        ) from None
    if runtime.deterministic:
        ms.set_deterministic(True)
    if runtime.max_device_memory and device == "Ascend":
        ms.runtime.set_memory(max_size=runtime.max_device_memory)
    here = ranks.current()
    if device == "CPU":
        _share_cores(here)
    if here.of > 1:
        _join_ranks(here)
    ms.set_seed(seed)
    # On CPU the first synchronize() logs an error about the device; as if it had been logged already, it does not.
    getattr(getattr(ms.runtime, "stream", None), "function_stream_status", {})["synchronize"] = True
    ops.configure(device=device, mode=runtime.mode, jit_level=runtime.jit_level, kernels=runtime.kernels)
    return {
        "device": device,
        "mode": runtime.mode,
        "jit_level": runtime.jit_level,
        "deterministic": runtime.deterministic,
        "launch": ops.chosen_launch(),
        "mindspore": ms.__version__,
        "kernels": ops.chosen_kernels(),
    }


def schedule_ranks() -> None:
    """What msrun's scheduler does in place of a rank's work: it brings the ranks together and returns when they end."""
    import mindspore as ms  # noqa: PLC0415
    from mindspore.communication import init  # noqa: PLC0415

    ms.set_device("CPU")
    init()


def _share_cores(here: ranks.Rank) -> None:
    """Each rank of a machine keeps to cores of its own, where there are enough of them, before anything is computed.

    MindSpore cuts an operator into as many pieces as its caller may use cores, hands them to threads and spins until
    they are done; with one core the caller itself computes.
    """
    cores = sorted(os.sched_getaffinity(0))
    each, local = len(cores) // here.here, here.index % here.here
    os.sched_setaffinity(0, cores[local * each : (local + 1) * each] if each else [cores[local % len(cores)]])


def _join_ranks(here: ranks.Rank) -> None:
    """After the device is chosen and before anything is built, as ``init`` demands."""
    from mindspore.communication import get_group_size, get_rank, init  # noqa: PLC0415

    init()
    assert (get_rank(), get_group_size()) == (here.index, here.of)
    from bench.gathered import gather_facts  # noqa: PLC0415 - imports mindspore

    ranks.refuse_differences(gather_facts(here.identity or {}))
