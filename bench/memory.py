"""Memory readings: the kernel's high-water marks, device counters, and the traces of the out-of-memory killer."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from typing import Any

from bench.record_parts import Memory, RankMemory

CPU_COUNTERS = "MindSpore's CPU backend returns 0 for every memory counter"
_RANK_FIELDS = ("device_allocated_peak_bytes", "device_reserved_peak_bytes", "process_peak_bytes")
_NO_REPORT = "no rank reported it: they ended before they could"
# How MindSpore (host and Ascend) and the C++ runtime say that memory ran out.
OOM_TEXT = re.compile(
    r"(Memory not enough|Failed to alloc memory|Out of memory|Allocate (?:\w+ )?memory failed|std::bad_alloc"
    r"|Unable to allocate .* for an array|Cannot allocate memory|^MemoryError\b|Malloc device memory failed)",
    re.IGNORECASE | re.MULTILINE,
)


# Under RLIMIT_DATA the stack of a new thread may be what finds no room.
CAPPED_TEXT = re.compile(
    OOM_TEXT.pattern + r"|can't start new thread|pthread_create failed|Resource temporarily unavailable",
    re.IGNORECASE | re.MULTILINE,
)


def process_hwm_bytes() -> int | None:
    """High-water mark of this process's resident memory (VmHWM), None where the system has none."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def reset_hwm() -> None:
    """Sets VmHWM to what is resident now (proc(5): 5 in clear_refs); OSError where that is not allowed."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident_bytes() -> int | None:
    """Resident memory of this process now (VmRSS), None where the system does not tell."""
    return _status_bytes("VmRSS")


def data_segment_bytes() -> int | None:
    """Private writable memory that this process holds, touched or not (VmData): what RLIMIT_DATA caps."""
    return _status_bytes("VmData")


def data_segment_peak_bytes() -> int | None:
    """The largest data segment so far, if files and shared memory were always mapped as now: the system keeps a mark
    of the address space alone (VmPeak), so what that has lost since is added to the segment."""
    now, size, highest = (_status_bytes(name) for name in ("VmData", "VmSize", "VmPeak"))
    return None if now is None or size is None or highest is None else now + highest - size


def maxrss_bytes(usage: resource.struct_rusage) -> int | None:
    """``ru_maxrss`` of a process waited for, in bytes (Linux counts KiB, macOS bytes)."""
    return (usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)) or None


def own_peak(child: int | None, parent: int | None) -> int | None:
    """The child's peak from wait4, None if it is no larger than the parent's own.

    Between fork and exec a child is a copy of its parent and Linux counts that copy: a mark up to the parent's
    says nothing about the program that ran afterwards.
    """
    return None if child is None or (parent is not None and child <= parent) else child


def device_peaks() -> dict[str, int | str | None]:
    """Peak bytes of the device as MindSpore reports them, ``reason`` when it does not; never imports mindspore."""
    ms = sys.modules.get("mindspore")
    if ms is None:
        return {"allocated": None, "reserved": None, "reason": "the run did not load MindSpore"}
    if ms.get_context("device_target") == "CPU":
        return {"allocated": None, "reserved": None, "reason": CPU_COUNTERS}
    allocated, reserved = int(ms.runtime.max_memory_allocated()), int(ms.runtime.max_memory_reserved())
    if not allocated or not reserved:
        return {"allocated": None, "reserved": None, "reason": "the device's counters returned 0"}
    return {"allocated": allocated, "reserved": reserved, "reason": None}


def memory_of(process_peak: int | None, reported: dict | None) -> tuple[Memory, dict[str, str]]:
    """Memory of a run of one process and the reason of each null, keyed ``memory.<field>``.

    ``process_peak``: from wait4 (``own_peak``); ``reported``: what the child wrote at its end, None if it died before.
    """
    died = "the process ended before it could report its memory"
    hwm = (reported or {}).get("hwm")
    process_peak = process_peak or hwm
    device = (reported or {}).get("device") or {"allocated": None, "reserved": None, "reason": died}
    rank = RankMemory(
        rank=0,
        device_allocated_peak_bytes=device["allocated"],
        device_reserved_peak_bytes=device["reserved"],
        process_peak_bytes=process_peak,
    )
    memory = Memory(
        device_allocated_peak_bytes=rank.device_allocated_peak_bytes,
        device_reserved_peak_bytes=rank.device_reserved_peak_bytes,
        process_peak_bytes=process_peak,
        process_hwm_bytes=hwm,
        per_rank=(rank,),
        max_rank=0,
    )
    reasons = {}
    for field in ("device_allocated_peak_bytes", "device_reserved_peak_bytes"):
        if getattr(rank, field) is None:
            reasons[f"memory.{field}"] = reasons[f"memory.per_rank.0.{field}"] = device["reason"] or died
    if process_peak is None:
        reason = "not above the mark that a child inherits from its parent, and the child did not report its own"
        reasons["memory.process_peak_bytes"] = reasons["memory.per_rank.0.process_peak_bytes"] = reason
    if hwm is None:
        reasons["memory.process_hwm_bytes"] = died if reported is None else "no /proc/self/status on this system"
    return memory, reasons


def memory_of_ranks(reported: dict[int, dict | None]) -> tuple[Memory, dict[str, str]]:
    """Memory of a run of several ranks: the largest of each reading and every rank's own, never a sum.

    ``reported``: what each rank wrote at its end (None: it died before). ``max_rank`` has the largest device peak, or
    the largest process peak where the device tells none.
    """
    rows, reasons, hwm = [], {}, {}
    for place, (rank, values) in enumerate(reported.items()):
        one, why = memory_of(None, values)
        rows.append(one.per_rank[0].model_copy(update={"rank": rank}))
        hwm[rank] = one.process_hwm_bytes
        for field in _RANK_FIELDS:
            if getattr(rows[-1], field) is None:
                reasons[f"memory.per_rank.{place}.{field}"] = why.get(f"memory.per_rank.0.{field}") or _NO_REPORT
    largest: dict[str, Any] = {
        field: max((v for row in rows if (v := getattr(row, field))), default=None) for field in _RANK_FIELDS
    }
    largest["process_hwm_bytes"] = max((value for value in hwm.values() if value), default=None)
    for field, value in largest.items():
        if value is None:
            reasons[f"memory.{field}"] = reasons.get(f"memory.per_rank.0.{field}") or _NO_REPORT
    key = next((field for field in _RANK_FIELDS if largest[field] is not None), None)
    if key is None:
        reasons["memory.max_rank"] = _NO_REPORT
    top = None if key is None else next(row.rank for row in rows if getattr(row, key) == largest[key])
    largest |= {"per_rank": tuple(rows), "max_rank": top}
    return Memory(**largest), reasons


def no_memory(reason: str) -> tuple[Memory, dict[str, str]]:
    """Memory of a run that had no process, every field null for ``reason``."""
    fields = [f for f in Memory.model_fields if f not in ("per_rank", "phases")]
    return Memory(), {f"memory.{f}": reason for f in fields}


def oom_kill_count() -> dict[str, int]:
    """Counters of the kernel's out-of-memory killer that this process can see, keyed by the file they come from."""
    counts: dict[str, int] = {}
    for file in [*_cgroup_files("memory.events", "memory.oom_control"), Path("/proc/vmstat")]:
        try:
            found = re.search(r"^oom_kill (\d+)", file.read_text(encoding="ascii"), re.MULTILINE)
        except OSError:
            continue
        if found:
            counts[str(file)] = int(found[1])
    return counts


def cgroup_limit() -> tuple[int | None, str | None]:
    """Smallest memory limit of this process's control groups in bytes, or the reason why there is none."""
    limits = []
    for file in _cgroup_files("memory.max", "memory.limit_in_bytes"):
        try:
            text = file.read_text(encoding="ascii").strip()
        except OSError:
            continue
        # cgroup v1 says "no limit" with a number near 2**63.
        if text.isdigit() and int(text) < 1 << 60:
            limits.append(int(text))
    return (min(limits), None) if limits else (None, "no control group limits memory")


def cgroup_cores() -> float | None:
    """Smallest processor-time limit of this process's control groups, in cores; None if there is none."""
    limits = []
    for file in _cgroup_files("cpu.max", "cpu.cfs_quota_us", controller="cpu"):
        try:
            text = file.read_text(encoding="ascii")
            period = file.with_name("cpu.cfs_period_us").read_text(encoding="ascii") if file.name != "cpu.max" else ""
        except OSError:
            continue
        limits.append(parse_cpu_limit(f"{text} {period}"))
    return min((limit for limit in limits if limit), default=None)


def parse_cpu_limit(text: str) -> float | None:
    """Cores from ``"150000 100000"`` (cpu.max of cgroup v2, or v1's quota and period); None for ``max`` and -1."""
    quota, period, *_ = [*text.split(), "", ""]
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _cgroup_files(v2: str, v1: str, controller: str = "memory") -> list[Path]:
    """The process's own group and its parents, for cgroup v2 and v1 mounts."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = root, v2
        elif controller in controllers.split(","):
            base, name = root / controller, v1
        else:
            continue
        here = base / group.strip("/")
        folders = [here, *here.parents]
        files += [f / name for f in folders if f.is_relative_to(base) and (f / name).is_file()]
    return list(dict.fromkeys(files))
