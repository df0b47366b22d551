"""Builds ``kernels*.cpp`` with the machine's C++ compiler, once, into the user's cache folder. Free of MindSpore."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.files import atomic_path

_PARTS = ("", "_attention", "_came", "_conv", "_norm", "_optim")
SOURCES = tuple(Path(__file__).with_name(f"kernels{part}.cpp") for part in _PARTS)
HEADERS = tuple(Path(__file__).with_name(f"kernels{part}.h") for part in ("", "_vector"))
COMPILERS = ("g++", "c++", "clang++")
# No fast-math and no contraction: results must not depend on the processor (see the source). The last two only let
# comparisons become selects.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
FLAGS += ("-shared", "-fPIC", "-pthread", "-Wno-psabi")
PATIENCE = 120.0  # seconds that the compiler may take

_held: dict[Path, ctypes.CDLL] = {}  # keeps every library loaded: its threads must not lose their code


@dataclass(frozen=True, kw_only=True)
class Library:
    """A built library, or why there is none.

    Args:
        path: the shared object, None without one.
        about: one line for the record.
    """

    path: Path | None
    about: str


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/cogbench`` or ``~/.cache/cogbench``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "cogbench"


def _processor() -> str:
    """What ``-march=native`` depends on: a home folder may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})) + platform.machine()


def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=True)
    return done.stdout.splitlines()[0]


def _compile(compiler: str, target: Path) -> None:
    with atomic_path(target) as temporary:
        command = [compiler, *FLAGS, "-o", str(temporary), *map(str, SOURCES)]
        subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)


def _load(path: Path) -> None:
    if path not in _held:
        _held[path] = ctypes.CDLL(str(path))


@lru_cache(maxsize=1)
def library() -> Library:
    """The compiled kernels; compiles them unless this machine has done so before. Never raises: no kernels, no harm.

    The file's name is a digest of the source, the flags, the compiler and the processor; it is written to a temporary
    name and renamed, so processes that start together may all compile and none reads half a file.
    """
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return Library(path=None, about=f"operators: no C++ compiler ({', '.join(COMPILERS)}) on this machine")
    try:
        version = _version(compiler)
        source = hashlib.sha256(b"".join(path.read_bytes() for path in (*HEADERS, *SOURCES))).hexdigest()
        key = hashlib.sha256("\n".join((source, *FLAGS, version, _processor())).encode()).hexdigest()
        path = cache_folder() / f"kernels-{key[:24]}.so"
        if not path.exists():
            _compile(compiler, path)
        try:
            _load(path)
        except OSError:  # a damaged file: once more
            _compile(compiler, path)
            _load(path)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        return Library(path=None, about=f"operators: {compiler} failed ({first})")
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        return Library(path=None, about=f"operators: the kernels could not be built ({error})")
    return Library(path=path, about=f"compiled: kernels.cpp {source[:12]}, {version}")
