"""What a task may say while it runs. Lives in the child process; imports mindspore only if the task already did."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bench.events import EventLog
from bench.load import LoadWatch
from bench.phases import BETWEEN, START, PhaseMeter, phase_of_stage, phase_of_step
from bench.rank import Rank

_already: list[bool] = []


class RunContext:
    """Handed to ``bench.tasks.<kind>.run(recipe, ctx)``; every call is written to events.jsonl at once.

    Attributes:
        recipe: the validated recipe.
        out: the output folder, already created.
        seed: the recipe's seed.
        rank: which process of how many this is.
        failures: number of inputs reported with ``row_failed``.
        meter: peak memory by phase, cut at every stage and step.
        load: how busy others kept the processors, from the last compiling step on.
        products: matrix products of the latest step, on whose shapes a peak is measured (``bench.roofline``).
    """

    def __init__(
        self,
        recipe: Any,
        out: Path,
        seed: int,
        events: EventLog,
        terminal: TextIO | None = None,
        *,
        rank: Rank | None = None,
        meter: PhaseMeter | None = None,
        load: LoadWatch | None = None,
    ):
        self.recipe, self.out, self.seed, self.rank = recipe, out, seed, rank or Rank()
        self.failures = 0
        self.products: tuple[Any, ...] = ()
        self._events, self._terminal = events, terminal
        self._open_stages: list[str] = []
        self.meter, self.load = meter or PhaseMeter(events.write), load or LoadWatch()
        self._outside = START

    def mine(self, items: Sequence) -> Sequence:
        """The items that this rank works on: every ``rank.of``-th, so that neighbours (often alike) are spread."""
        return items[self.rank.index :: self.rank.of]

    @contextmanager
    def stage(self, name: str, *, items: int | None = None, frames: int | None = None) -> Iterator[None]:
        """Times the block from a synchronised device to a synchronised device; nests (``outer/inner``).

        A stage that raises is recorded too: the time was spent.
        """
        if not self.load.begun:
            self.load.begin()
        synchronize()
        self.meter.cut(self._phase())
        self._outside = BETWEEN
        self._open_stages.append(name)
        path = "/".join(self._open_stages)
        start = time.perf_counter()
        try:
            yield
            synchronize()
        finally:
            seconds = time.perf_counter() - start
            self.meter.cut(self._phase())
            self._open_stages.pop()
            peak = self.meter.process_lifetime()
            self._events.write("stage", name=path, seconds=seconds, items=items, frames=frames, process_peak_bytes=peak)

    def _phase(self) -> str:
        return phase_of_stage(self._open_stages[-1]) if self._open_stages else self._outside

    def step(
        self,
        index: int,
        seconds: float,
        *,
        loss: float | None = None,
        tags: Sequence[str] = (),
        samples: int | None = None,
        frames: int | None = None,
        tokens: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Records one step of ``seconds`` (measured by the caller between synchronised points).

        A loss that is not finite is kept as ``loss_hex`` and makes the run ``failed``. ``tags`` such as
        ``compile`` or ``checkpoint`` take the step out of the statistics (``bench.timer.EXCLUDED_TAGS``).
        """
        fields: dict[str, Any] = {"index": int(index), "seconds": float(seconds), "tags": list(tags)}
        if loss is not None:
            loss = float(loss)
            fields |= {"loss": loss if math.isfinite(loss) else None, "loss_hex": loss.hex()}
        self.meter.cut(phase_of_step(tags))
        if "compile" in tags:
            self.load.begin()
        counts = {"samples": samples, "frames": frames, "tokens": tokens}
        fields |= {name: int(count) for name, count in counts.items() if count is not None}
        self._events.write("step", **fields, extra=plain(extra or {}))

    def metric(self, name: str, value: float | None, unit: str, reason: str | None = None) -> None:
        """Records a named number with its unit; None and NaN need or get a ``reason``."""
        if value is None and not reason:
            raise AssertionError(f"metric {name!r} is None without a reason")
        value = None if value is None else float(value)
        if value is not None and not math.isfinite(value):
            value, reason = None, reason or f"computed as {value}"
        self._events.write("metric", name=name, value=value, unit=unit, reason=reason if value is None else None)

    def roofline(self, found: dict[str, Any]) -> None:
        """Records the measured peak (``bench.roofline.measure``), or ``{"reason": why there is none}``."""
        self._events.write("roofline", **plain(found))

    def row_failed(self, row: int | None, item: str, message: str) -> None:
        """Reports an input that can't be processed; the run goes on and ends with status ``failed``."""
        self.failures += 1
        text = " ".join(str(message).split())
        self._events.write("failure", row=None if row is None else int(row), item=str(item), message=text)
        print(f"failed: {f'row {row}: ' if row is not None else ''}{item}: {text}", file=sys.stderr, flush=True)

    def artifact(self, kind: str, path: str | Path, **meta: Any) -> None:
        """Lists a finished file (video, image, latents, embeds, checkpoint, table) with its sha256."""
        file = Path(path)
        with file.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
        self._events.write("artifact", kind=kind, path=str(file.absolute()), sha256=digest, meta=plain(meta))

    def digest(self, name: str, array: np.ndarray) -> str:
        """Records and returns the sha256 of an array's type, shape and bytes."""
        value = array_digest(array)
        self._events.write("digest", name=name, value=value)
        return value

    def digest_value(self, name: str, value: str) -> None:
        """Records a sha256 that the caller computed itself (over what is too large for one array)."""
        self._events.write("digest", name=name, value=value)

    def tensor(self, group: str, name: str, array: np.ndarray) -> str:
        """Records and returns the sha256 of one tensor of ``group`` (``parameters``, ``input/vae``, ``latents``)."""
        value = array_digest(array)
        shape = [int(n) for n in np.shape(array)]
        self._events.write("tensor", group=group, name=name, dtype=str(array.dtype), shape=shape, sha256=value)
        return value

    def note(self, key: str, value: Any) -> None:
        """Records a small fact (decoder backend, scheduler, parameter count); a later note of ``key`` replaces it."""
        self._events.write("note", key=key, value=plain(value))

    def progress(self, iterable: Iterable, label: str, total: int | None = None) -> Iterable:
        """The same items, with a bar on the terminal when there is one."""
        if self._terminal is None:
            return iterable
        from tqdm import tqdm  # noqa: PLC0415 - only for terminals

        return tqdm(iterable, desc=label, total=total, file=self._terminal, leave=False, dynamic_ncols=True)


def synchronize() -> None:
    """Waits for the device if MindSpore is loaded: without it a clock reads the queueing, not the work."""
    ms = sys.modules.get("mindspore")
    if ms is None or not hasattr(ms, "runtime"):
        return
    if not _already:
        # MindSpore 2.10 on CPU: the first call of a process returns without waiting (measured), later ones wait.
        _already.append(True)
        ms.runtime.synchronize()
    ms.runtime.synchronize()


def array_digest(array: np.ndarray) -> str:
    """sha256 over ``dtype``, shape and the C-order bytes of ``array``."""
    value = np.ascontiguousarray(array)
    head = f"{value.dtype.str}{tuple(np.shape(array))}".encode()
    return hashlib.sha256(head + value.tobytes()).hexdigest()


class PiecesDigest:
    """sha256 of a video ``[3, T, H, W]`` that comes in pieces along T: of every piece's ``array_digest``, in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, piece: np.ndarray) -> None:
        """Takes the next piece."""
        self._digest.update(array_digest(piece).encode())

    def value(self) -> str:
        """The digest of all pieces so far."""
        return self._digest.hexdigest()


def plain(value: Any) -> Any:
    """``value`` in JSON's types: numpy scalars, paths, sets and tuples converted, NaN and infinity as text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(inner) for inner in value)
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite and (value is None or isinstance(value, bool | int | float | str)) else str(value)
