"""Peak memory by phase: the counters are read and set back wherever a phase of the run ends. Lives in the child."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from bench.memory import CPU_COUNTERS, process_hwm_bytes, reset_hwm
from bench.record_parts import Memory, PhaseMemory

# What happens outside stages and steps: before the first one Python starts and libraries load.
START, BETWEEN = "start", "between stages"
_NAMES = {"vae_decode": "decode", "vae_encode": "encode"}
_READ = ("process", "allocated", "reserved")
_NO_RESET = "the kernel does not let this process set its high-water mark back, so it holds earlier phases too"


class PhaseMeter:
    """Attributes the peak since the last ``cut`` to the phase that ends there.

    The kernel's mark of resident memory (VmHWM) is set back through /proc/self/clear_refs, the device's counters
    through MindSpore; ``lifetime`` keeps the largest of all, which the counters then no longer do.
    """

    def __init__(self, write: Callable[..., None]):
        self._write = write
        self._peaks: dict[str, dict[str, int]] = {}
        self.lifetime: dict[str, int] = {}

    def cut(self, phase: str) -> None:
        """Ends a part of ``phase``; an event is written when it raised one of the phase's peaks."""
        readings = {"process": process_hwm_bytes(), **_device()}
        for name, value in readings.items():
            self.lifetime[name] = max(self.lifetime.get(name, 0), value or 0)
        resettable = _reset_process()
        peaks, grown = self._peaks.setdefault(phase, {}), False
        for name, value in readings.items():
            if value and value > peaks.get(name, 0):
                peaks[name], grown = value, True
        if grown:
            self._write("phase", name=phase, resettable=resettable, **{name: peaks.get(name) for name in _READ})

    def process_lifetime(self) -> int | None:
        """The largest resident memory of the process so far, in bytes."""
        return max(self.lifetime.get("process", 0), process_hwm_bytes() or 0) or None

    def device_lifetime(self, read: dict[str, Any]) -> dict[str, Any]:
        """What ``bench.memory.device_peaks`` returned, with the peaks of before the counters were set back."""
        raised = {k: max(read[k], self.lifetime.get(k, 0)) for k in ("allocated", "reserved") if read[k] is not None}
        return read | raised


def phase_of_stage(name: str) -> str:
    """The phase of a stage: everything that loads is ``load``."""
    return "load" if name.startswith("load") else _NAMES.get(name, name)


def phase_of_step(tags: Iterable[str]) -> str:
    """``first step`` for one that compiles, its tag for another that does more than a step's work, else ``steady``."""
    found = [tag for tag in tags if tag in ("compile", "checkpoint", "eval", "sample")]
    return "first step" if "compile" in found else found[0] if found else "steady"


def with_phases(memory: Memory, reasons: dict[str, str], events: Iterable[dict]) -> Memory:
    """``memory`` with the phases in ``events`` (of type phase); fills ``reasons`` for each null in them."""
    latest: dict[tuple[int, str], dict] = {}
    for event in events:
        latest[int(event.get("rank", 0)), event["name"]] = event
    no_device = reasons.get("memory.device_allocated_peak_bytes") or CPU_COUNTERS
    phases = []
    for index, ((rank, name), event) in enumerate(latest.items()):
        values = {
            "device_allocated_peak_bytes": event["allocated"],
            "device_reserved_peak_bytes": event["reserved"],
            "process_peak_bytes": event["process"] if event["resettable"] else None,
        }
        why = {"process_peak_bytes": _NO_RESET if event["process"] else "no /proc/self/status on this system"}
        reasons |= {f"memory.phases.{index}.{k}": why.get(k, no_device) for k, v in values.items() if v is None}
        phases.append(PhaseMemory(name=name, rank=rank, **values))
    return memory.model_copy(update={"phases": tuple(phases)})


def largest_process_peak(events: Iterable[dict]) -> int | None:
    """The largest resident memory of any phase: what wait4 can't know once the mark was set back."""
    return max((event["process"] for event in events if event.get("process")), default=None)


def _device() -> dict[str, int | None]:
    """Peaks since the last call, and the counters set back."""
    ms = _on_a_device()
    values: dict[str, int | None] = {"allocated": None, "reserved": None}
    if ms is not None:
        try:
            values = {
                "allocated": int(ms.runtime.max_memory_allocated()),
                "reserved": int(ms.runtime.max_memory_reserved()),
            }
            ms.runtime.reset_max_memory_allocated()
            ms.runtime.reset_max_memory_reserved()
        except RuntimeError:
            # A device that failed can't be asked, and the failure itself must not be hidden by this one.
            return values
    return values


def _on_a_device() -> Any:
    """MindSpore, if the run has started it on something that counts its memory; never imports it."""
    ms = sys.modules.get("mindspore")
    # Asking for the target before the task has set it would choose one.
    started = ms is not None and sys.modules.get("core.ops") is not None
    return ms if ms is not None and started and ms.get_context("device_target") != "CPU" else None


def _reset_process() -> bool:
    """False where the high-water mark can't be set back."""
    try:
        reset_hwm()
    except OSError:
        return False
    return True
