"""Starts a group of processes with msrun, runs many cases in it, and hands out what each rank returned."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TIMEOUT_S = 1200
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Results:
    """What the ranks of one run wrote: ``<case>-<rank>.npz``, and the end of each rank's log."""

    folder: Path
    ranks: int
    logs: str

    def of(self, case: str) -> list[dict[str, np.ndarray]]:
        """The arrays of ``case`` by rank; AssertionError with the logs' ends where a rank did not finish it."""
        paths = [self.folder / f"{case}-{rank}.npz" for rank in range(self.ranks)]
        missing = [path.name for path in paths if not path.is_file()]
        assert not missing, f"{', '.join(missing)} not written\n{self.logs}"
        return [dict(np.load(path, allow_pickle=False)) for path in paths]


def run_ranks(module: str, ranks: int, folder: Path, *arguments: str, timeout: float = TIMEOUT_S) -> Results:
    """Runs ``python -m tests.distributed.worker MODULE FOLDER`` in ``ranks`` processes and waits for all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        str(Path(sys.executable).with_name("msrun")),
        f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--master_port={free_port()}",
        f"--log_dir={folder / 'logs'}", "--join=True", "--cluster_time_out=120",
        str(ROOT / "tests" / "distributed" / "worker.py"), module, str(folder), *arguments,
    ]  # fmt: skip
    # msrun calls its workers' interpreter "python". Threads of several processes on few cores spin against each other.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOG_v": "3"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        output = f"ended after {timeout} s"
    finally:
        # msrun and its workers are one session: none outlives the test.
        _end(process)
    return Results(folder, ranks, output[-2000:] + _tails(folder / "logs"))


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _tails(logs: Path) -> str:
    return "".join(
        f"\n--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(logs.glob("worker_*.log"))
    )
