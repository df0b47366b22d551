"""What the driver's tool ``npu-smi info`` says about the cards, and a watch over their memory during a run."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from dataclasses import dataclass, field

from bench.record_parts import CardMemory, DeviceLevel

SOURCE = "npu-smi info"
_MIB = 2**20
# One call takes part of a second of a host core: rare enough not to disturb what is measured.
_SAMPLE_SECONDS = 5.0
_CALL_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Card:
    """One chip: ``id`` is ``npu.chip``; memory as the driver counts it, all users together."""

    id: str
    name: str
    health: str
    hbm_used_bytes: int
    hbm_total_bytes: int


@dataclass(frozen=True, kw_only=True)
class CardProcess:
    """A process on a card. In a container ``pid`` may be the host's number and ``name`` empty."""

    card: str
    pid: int
    name: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Info:
    """The whole table: the tool's version, every chip, every process."""

    version: str | None
    cards: tuple[Card, ...]
    processes: tuple[CardProcess, ...]


def parse_info(text: str) -> Info:
    """The output of ``npu-smi info``; no cards when it is something else.

    Two lines a chip (910B: one chip an NPU; 910C and Atlas A3: two), MB meaning MiB, then a table of processes.
    Written after the vendor's documentation and outputs in public issues; not tried on a card.
    """
    version = re.search(r"npu-smi\s+\S+\s+Version:\s*(\S+)", text)
    cards: list[Card] = []
    processes: list[CardProcess] = []
    head: tuple[str, str, str] | None = None
    in_processes = False
    for line in text.splitlines():
        in_processes = in_processes or "Process id" in line
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if in_processes:
            processes += _process(cells)
        elif head is None:
            head = _head(cells)
        else:
            cards += _chip(cells, head)
            head = None
    return Info(version=version[1] if version else None, cards=tuple(cards), processes=tuple(processes))


def _head(cells: list[str]) -> tuple[str, str, str] | None:
    """NPU number, name and health from ``0  910B3 | OK | 95.4  37  0 / 0``."""
    found = re.fullmatch(r"(\d+)\s+(\S.*)", cells[0]) if len(cells) == 3 else None
    return (found[1], found[2].strip(), cells[1]) if found and not _usages(cells[1]) else None


def _chip(cells: list[str], head: tuple[str, str, str]) -> list[Card]:
    """The chip of ``0  [2] | 0000:C1:00.0 | 0  0 / 0  3401 / 65536``; the last usage is HBM."""
    chip = cells[0].split()
    usages = _usages(cells[-1])
    if len(cells) != 3 or not chip or not chip[0].isdecimal() or not usages:
        return []
    used, total = usages[-1]
    npu, name, health = head
    return [
        Card(
            id=f"{npu}.{chip[0]}", name=name, health=health, hbm_used_bytes=used * _MIB, hbm_total_bytes=total * _MIB
        )
    ]  # fmt: skip


def _process(cells: list[str]) -> list[CardProcess]:
    where = cells[0].split()
    if len(cells) != 4 or not where or not all(part.isdecimal() for part in (*where, cells[1], cells[3])):
        return []
    card = f"{where[0]}.{where[1] if len(where) > 1 else 0}"
    return [CardProcess(card=card, pid=int(cells[1]), name=cells[2], memory_bytes=int(cells[3]) * _MIB)]


def _usages(cell: str) -> list[tuple[int, int]]:
    return [(int(used), int(total)) for used, total in re.findall(r"(\d+)\s*/\s*(\d+)", cell)]


def read_info() -> tuple[Info | None, str]:
    """The cards now, or None and why."""
    tool = shutil.which("npu-smi")
    if tool is None:
        return None, "no npu-smi on this machine"
    try:
        done = subprocess.run([tool, "info"], capture_output=True, text=True, timeout=_CALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"npu-smi info failed: {type(error).__name__}"
    info = parse_info(done.stdout)
    if done.returncode or not info.cards:
        return None, f"npu-smi info listed no card (exit {done.returncode})"
    return info, ""


@dataclass
class DeviceWatch:
    """Reads the cards before a run, samples them while it goes on; used as a context around the child.

    An idle 910B card shows about 3.3 GiB in use, so a device-level peak means something only above its idle reading.
    """

    wanted: bool
    seconds: float = _SAMPLE_SECONDS
    _idle: Info | None = None
    _why: str = ""
    _peaks: dict[str, int] = field(default_factory=dict)
    _samples: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> DeviceWatch:
        if self.wanted:
            self._idle, self._why = read_info()
        if self._idle is not None:
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(self.seconds):
            info, _ = read_info()
            for card in info.cards if info else ():
                self._peaks[card.id] = max(self._peaks.get(card.id, 0), card.hbm_used_bytes)
            self._samples += info is not None

    def result(self) -> DeviceLevel | None:
        """The readings of the run; None for a run without cards."""
        if not self.wanted:
            return None
        if self._idle is None:
            return DeviceLevel(source=SOURCE, samples=0, reason=self._why)
        cards = tuple(
            CardMemory(card=c.id, idle_bytes=c.hbm_used_bytes, peak_bytes=max(c.hbm_used_bytes, self._peaks[c.id]))
            for c in self._idle.cards
            if c.id in self._peaks
        )
        net = max((card.peak_bytes - card.idle_bytes for card in cards), default=0) or None
        why = "the run ended before the first sample" if not self._samples else "no card showed more than when idle"
        before = tuple(f"{p.card} {p.pid} {p.name}".strip() for p in self._idle.processes)
        return DeviceLevel(
            source=SOURCE, samples=self._samples, cards=cards, net_peak_bytes=net, processes_before=before,
            reason=None if net else why,
        )  # fmt: skip
