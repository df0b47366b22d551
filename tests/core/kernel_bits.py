"""What the tests of every compiled kernel ask: the same bits with any number of threads and with narrower vectors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from core import native

ROOT = Path(__file__).resolve().parents[2]


def assert_same_with_any_threads(module: str, digests: dict[str, Any]) -> None:
    """``module``'s ``_digests()``, in processes that may use one core and all of them, is ``digests``."""
    for cores in ("range(1)", "range(os.cpu_count())"):
        program = (
            f"import os, sys; os.sched_setaffinity(0, {cores}); sys.path.insert(0, {str(ROOT)!r})\n"
            f"from tests.core import {module} as t; print('DIGESTS', t._digests())"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
        assert f"DIGESTS {digests}" in done.stdout


def narrow_library(folder: Path) -> Path | None:
    """The kernels built for AVX2 on a machine that may have more; None where there is no compiler or no AVX2."""
    compiler = next((found for name in native.COMPILERS if (found := shutil.which(name))), None)
    if compiler is None or "avx2" not in Path("/proc/cpuinfo").read_text():
        return None
    flags = [flag if flag != "-march=native" else "-march=haswell" for flag in native.FLAGS]
    narrow = folder / "narrow.so"
    subprocess.run([compiler, *flags, "-o", str(narrow), *map(str, native.SOURCES)], check=True, timeout=120)
    return narrow
