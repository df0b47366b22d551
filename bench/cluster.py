"""How many processes a run has and where: the numbers for ``msrun``, MindSpore's launcher, and its command line."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError

FOLDER = "ranks"
LAUNCHER_LOG = "log.txt"
# Time that all processes have to find each other. On one machine they start together; nodes are started by hand.
_ONE_NODE_SECONDS, _NODES_SECONDS = 120, 600


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """``--nodes``, ``--node-rank`` and ``--master``: which machine of how many this is, and where rank 0 listens."""

    count: int = 1
    rank: int = 0
    master: tuple[str, int] | None = None


ONE_NODE = Nodes()


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """``workers`` processes on ``nodes`` machines, the same number on each; this machine is number ``node_rank``."""

    workers: int
    nodes: int
    node_rank: int
    host: str
    port: int

    @property
    def local(self) -> tuple[int, ...]:
        """The ranks on this machine."""
        each = self.workers // self.nodes
        return tuple(range(self.node_rank * each, (self.node_rank + 1) * each))


def parse_nodes(count: int | None, rank: int | None, master: str | None) -> Nodes:
    """``Nodes`` from the command line's values (None: not given); UserError for what does not fit together."""
    count = count or 1
    if count == 1:
        if rank or master is not None:
            given = "--node-rank" if rank else "--master"
            raise UserError(f"{given}: got it without --nodes, need --nodes N on every node: add it or leave both out")
        return ONE_NODE
    if rank is None or not 0 <= rank < count:
        raise UserError(
            f"--node-rank: got {rank}, need 0 to {count - 1} with --nodes {count}: a different one per node"
        )
    host, _, port = (master or "").rpartition(":")
    if not host or not port.isdecimal() or not 1024 <= int(port) <= 65535:
        raise UserError(f"--master: got {master}, need HOST:PORT of node 0, port 1024 to 65535, the same on every node")
    return Nodes(count=count, rank=rank, master=(host.strip("[]"), int(port)))


def cluster_of(runtime: Mapping[str, Any], nodes: Nodes) -> Cluster | None:
    """The processes that ``runtime.workers`` asks for, None for one; picks a free port on a single machine.

    Raises:
        UserError: workers and nodes do not fit, or the port is taken.
    """
    workers = int(runtime.get("workers") or 1)
    if workers % nodes.count:
        raise UserError(f"runtime.workers: got {workers} for {nodes.count} nodes, need a multiple of --nodes")
    if workers == 1:
        return None
    if nodes.master is None:
        return Cluster(workers=workers, nodes=1, node_rank=0, host="127.0.0.1", port=free_port())
    host, port = nodes.master
    if nodes.rank == 0:
        refuse_taken_port(port)
    return Cluster(workers=workers, nodes=nodes.count, node_rank=nodes.rank, host=host, port=port)


def free_port() -> int:
    """A TCP port that nobody listens on; another process can still take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def refuse_taken_port(port: int) -> None:
    """UserError when something on this machine listens on ``port`` already, such as a run that was left behind."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise UserError(
                f"--master: port {port} is in use on this machine (a run left behind?): end that process, or give "
                "another port on every node"
            ) from None


def rank_log(run_dir: Path, rank: int) -> Path:
    """Where msrun puts the output of a rank."""
    return run_dir / FOLDER / f"worker_{rank}.log"


def rank_events(run_dir: Path, rank: int) -> Path:
    """Where a rank of several writes its events; a process that runs alone has ``events.jsonl``."""
    return run_dir / FOLDER / f"events_{rank}.jsonl"


def msrun_command(cluster: Cluster, run_dir: Path, module: str = "bench.child") -> list[str]:
    """The command that starts this machine's ranks (and on node 0 the scheduler) of the job in ``run_dir``.

    ``module``: what each of them runs; it is given ``run_dir``.
    """
    timeout = _ONE_NODE_SECONDS if cluster.nodes == 1 else _NODES_SECONDS
    options = {
        "worker_num": cluster.workers,
        "local_worker_num": len(cluster.local),
        "master_addr": cluster.host,
        "master_port": cluster.port,
        "node_rank": cluster.node_rank,
        "log_dir": (run_dir / FOLDER).absolute(),
        "join": True,
        "cluster_time_out": timeout,
        # A number that no worker has: msrun would start a `tail` for each, and cut its last lines off at the end.
        "tail_worker_log": cluster.workers,
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "bench.msrun", *given, "python", "-m", module, str(run_dir.absolute())]
