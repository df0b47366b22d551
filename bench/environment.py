"""What the run ran on: machine, system, packages, Ascend stack, code. Reads files and metadata, not mindspore itself.

Each function returns a plain dict in which None means unknown and fills ``reasons`` (dotted key -> why).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from bench.memory import cgroup_cores, cgroup_limit
from bench.npu import read_info
from bench.record_parts import Code

PACKAGES = (
    "mindspore",
    "numpy",
    "safetensors",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "pandas",
    "decord",
    "av",
    "pydantic",
    "pillow",
)
# Only these are copied into a record: others may hold secrets and say nothing about speed.
VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "MALLOC_ARENA_MAX",
    "PYTHONHASHSEED",
    "GLOG_v",
    "MS_ENABLE_RUNTIME_PROFILER",
    "MS_DEV_RUNTIME_CONF",
    "MS_ALLOC_CONF",
    "MS_COMPILER_CACHE_ENABLE",
    "HCCL_DETERMINISTIC",
    "HCCL_ALGO",
    "HCCL_BUFFSIZE",
    "HCCL_OP_EXPANSION_MODE",
    "ASCEND_RT_VISIBLE_DEVICES",
    "ASCEND_LAUNCH_BLOCKING",
    "PYTORCH_NPU_ALLOC_CONF",
)
# The instruction sets that decide which kernels oneDNN and numpy choose.
_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
)
_ASCEND_FILES = {
    "driver": "/usr/local/Ascend/driver/version.info",
    "firmware": "/usr/local/Ascend/firmware/version.info",
}
# Where the vendor's installation guide (CANN 8.0 and 8.5, "File Paths") and its packages put the version.
_CANN_FILES = (
    "latest/version.cfg",
    "latest/compiler/version.info",
    f"latest/{platform.machine()}-linux/ascend_toolkit_install.info",
    "cann/version.cfg",
    f"cann/{platform.machine()}-linux/ascend_toolkit_install.info",
)
_RESULTS = frozenset({"records", "baselines"})
_CODE_FOLDERS = ("core", "recipes", "bench", "reports")
_CODE_SUFFIXES = frozenset({".py", ".cpp", ".h", ".yaml", ".csv", ".html", ".css", ".js", ".j2", ".json"})


def collect(variables: Mapping[str, str]) -> tuple[dict, dict[str, str]]:
    """The environment of a child started with ``variables``; the reason of each null, keyed ``environment.<key>``."""
    reasons: dict[str, str] = {}
    environment = {
        "cpu": cpu(reasons),
        "memory": memory(reasons),
        "os": operating_system(reasons),
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "packages": packages(reasons),
        "ascend": ascend(reasons),
        "variables": {name: variables[name] for name in VARIABLES if name in variables},
    }
    hardware = {k: environment[k] for k in ("cpu", "memory")} | {"cards": environment["ascend"]["cards"]}
    software = {k: environment[k] for k in ("os", "python", "packages", "variables")}
    software |= {k: environment["ascend"][k] for k in ("driver", "firmware", "cann")}
    environment["hardware_digest"] = _digest(hardware)
    environment["software_digest"] = _digest(software)
    return environment, {f"environment.{key}": reason for key, reason in reasons.items()}


def cpu(reasons: dict[str, str]) -> dict:
    """Model, instruction sets, cores (logical, physical, usable by this process) and frequency governor."""
    import psutil  # noqa: PLC0415 - `cogbench check` does not need it

    text = _read("/proc/cpuinfo") or ""
    model = re.search(r"^(?:model name|Model|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    values = {
        "model": model[1].strip() if model else (platform.processor() or None),
        "machine": platform.machine(),
        "instruction_sets": [f for f in _FLAGS if f in present] if present is not None else None,
        "logical_cores": psutil.cpu_count(),
        "physical_cores": psutil.cpu_count(logical=False),
        "usable_cores": usable,
        "cgroup_cores": cgroup_cores(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }
    why = {
        "model": "not in /proc/cpuinfo",
        "instruction_sets": "not in /proc/cpuinfo",
        "cgroup_cores": "no control group limits processor time",
        "governor": "no cpufreq in /sys (virtual machine or container)",
    }
    return _explained("cpu", values, why, reasons)


def memory(reasons: dict[str, str]) -> dict:
    """Total memory and the control group's limit in bytes."""
    import psutil  # noqa: PLC0415

    limit, why = cgroup_limit()
    values = {"total_bytes": psutil.virtual_memory().total, "cgroup_limit_bytes": limit}
    return _explained("memory", values, {"cgroup_limit_bytes": why or ""}, reasons)


def operating_system(reasons: dict[str, str]) -> dict:
    """System, kernel release, distribution and C library."""
    try:
        distribution = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        distribution = None
    values = {
        "system": platform.system(),
        "release": platform.release(),
        "distribution": distribution,
        "libc": " ".join(platform.libc_ver()).strip() or None,
    }
    return _explained("os", values, {"distribution": "no os-release file", "libc": "not a GNU system"}, reasons)


def packages(reasons: dict[str, str]) -> dict[str, str | None]:
    """Installed version of each package that can change a result, from its metadata."""
    versions = {name: package_version(name) for name in PACKAGES}
    return _explained("packages", versions, dict.fromkeys(PACKAGES, "not installed"), reasons)


def package_version(name: str) -> str | None:
    """Version in the package's metadata, None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def ascend(reasons: dict[str, str]) -> dict:
    """Driver, firmware and CANN versions from their files, and the cards npu-smi lists."""
    values: dict = {name: _version_in(path) for name, path in _ASCEND_FILES.items()}
    home = Path(os.environ.get("ASCEND_TOOLKIT_HOME", "/usr/local/Ascend/ascend-toolkit"))
    candidates = [home.parent / f for f in _CANN_FILES] + [home / f.split("/", 1)[1] for f in _CANN_FILES]
    candidates += [home / f for f in _CANN_FILES]
    values["cann"] = next((v for v in (_version_in(c) for c in candidates) if v), None)
    cards, why_cards = _cards()
    values["cards"] = cards
    why: dict[str, str] = {name: f"no version in {path}" for name, path in _ASCEND_FILES.items()}
    return _explained("ascend", values, why | {"cann": f"no CANN below {home.parent}", "cards": why_cards}, reasons)


def _cards() -> tuple[list[str] | None, str]:
    info, _ = read_info()
    if info is not None:
        return [f"{card.name} {round(card.hbm_total_bytes / 2**30)} GiB" for card in info.cards], ""
    tool = shutil.which("npu-smi")
    if tool is None:
        return None, "no npu-smi on this machine"
    try:
        done = subprocess.run([tool, "info", "-l"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"npu-smi info failed: {type(error).__name__}"
    names = re.findall(r"^\s*(?:Product Name|Chip Name|Name)\s*:\s*(.+?)\s*$", done.stdout, re.MULTILINE)
    names = names or re.findall(r"^\s*NPU ID\s*:\s*(\d+)", done.stdout, re.MULTILINE)
    return (
        (names, "")
        if done.returncode == 0 and names
        else (None, f"npu-smi info -l listed no card (exit {done.returncode})")
    )


def code_root() -> Path:
    """The folder that holds the packages core, recipes, bench and reports."""
    return Path(__file__).resolve().parent.parent


def code(reasons: dict[str, str], root: Path | None = None) -> Code:
    """Commit, dirty flag and digest of the code in ``root``; fills ``reasons`` under ``code.commit`` and ``.dirty``."""
    root = root or code_root()
    digest = code_digest(root)
    top, why = _git(root, "rev-parse", "--show-toplevel")
    if top is not None and Path(top).resolve() != root.resolve():
        top, why = None, "the code is installed, not in a git checkout of its own"
    commit = None
    if top is not None:
        commit, why = _git(root, "rev-parse", "--verify", "HEAD")
        why = "the git checkout has no commit" if commit is None else why
    if commit is None:
        reasons["code.commit"] = reasons["code.dirty"] = why
        return Code(commit=None, dirty=None, digest=digest)
    folders = [f for f in (*_CODE_FOLDERS, "pyproject.toml") if (root / f).exists()]
    # Accepting a baseline or adding a record does not make the code another.
    results = [f":(exclude)reports/{name}" for name in sorted(_RESULTS)]
    changes, why = _git(root, "status", "--porcelain", "--", *folders, *results)
    if changes is None:
        reasons["code.dirty"] = why
    return Code(commit=commit, dirty=None if changes is None else bool(changes), digest=digest)


def code_digest(root: Path) -> str:
    """sha256 over the names and bytes of the source files of the four packages below ``root``."""
    total = hashlib.sha256()
    for folder in _CODE_FOLDERS:
        files = [f for f in (root / folder).rglob("*") if f.suffix in _CODE_SUFFIXES and f.is_file()]
        # Records, baselines and generated pages below reports/ are results, not code.
        for file in sorted(f for f in files if not _RESULTS & set(f.relative_to(root).parts)):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            total.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _git(root: Path, *arguments: str) -> tuple[str | None, str]:
    # Without optional locks `git status` can't disturb another git process in the same checkout.
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return None, "git is not installed"
    except subprocess.TimeoutExpired:
        return None, "git did not answer within 20 s"
    if done.returncode != 0:
        return None, "not in a git checkout"
    return done.stdout.strip(), ""


def _explained(section: str, values: dict, why: dict[str, str], reasons: dict[str, str]) -> dict:
    for key, value in values.items():
        if value is None:
            reasons[f"{section}.{key}"] = why.get(key) or "the system does not say"
    return values


def _version_in(path: str | Path) -> str | None:
    text = _read(path) or ""
    found = re.search(r"^(?:[\w-]*_?version[\w-]*)\s*=\s*\[?\"?([^\]\"\n]+)", text, re.MULTILINE | re.IGNORECASE)
    return found[1].strip() if found else None


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
