"""Large memory outside the pool goes back to the system once a process has asked for it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

from core import ops_cpu

ROOT = Path(__file__).resolve().parents[2]
# Frees 8 MiB, which raises glibc's limit; then 4 MiB come from the heap unless the limit is fixed.
PROGRAM = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]
libc.mallinfo2.restype = Info
if sys.argv[1] == "fixed":
    from core.ops_cpu import return_large_memory
    return_large_memory()
libc.free(libc.malloc(8 << 20))
before = libc.mallinfo2().hblks
kept = libc.malloc(4 << 20)
print("MAPPED", libc.mallinfo2().hblks - before)
"""


def _mapped(how: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.split("MAPPED")[1].strip()


def test_large_pieces_are_mapped_by_themselves() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "mallinfo2"):
        ops_cpu.return_large_memory()  # another libc: nothing happens
        return
    assert (_mapped("as it is"), _mapped("fixed")) == ("0", "1")
