"""One record's facts from those of several ranks: rank 0's events, and the largest of what every rank measured."""

from __future__ import annotations

import re
import signal as signals
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.cluster import FOLDER, LAUNCHER_LOG, rank_events, rank_log
from bench.events import inputs_failed, last, read_events
from bench.memory import OOM_TEXT
from bench.process import Ended
from bench.record_parts import RankEnd
from bench.timer import EXCLUDED_TAGS

# What msrun logs about a worker that failed.
_WORKER_EXIT = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")
# A rank whose median step takes so much longer than the median of all is called slow.
SLOW_FACTOR = 1.2
_KILLED_WITH = "ended because another rank failed"


@dataclass
class RankRun:
    """What one rank left behind."""

    rank: int
    events: list[dict]
    damaged: bool
    exit_code: int | None = None
    signal: str | None = None
    gone: float | None = None
    started: dict = field(default_factory=dict)

    @property
    def end(self) -> dict | None:
        """Its last word, None if it could not say any."""
        return last(self.events, "end")

    @property
    def failed_at(self) -> float | None:
        """When it failed (time.time); None if it ended well or was never seen to end."""
        if self.end is not None:
            fine = self.end["status"] == "ok" or self.end.get("rows_failed")
            return None if fine else self.end.get("at", self.gone)
        return self.gone

    def seconds(self) -> list[float]:
        """Durations of its counted steps: its own work where the task told it apart from waiting for others."""
        steps = (e for e in self.events if e["type"] == "step" and not EXCLUDED_TAGS & set(e["tags"]))
        return [own for e in steps if (own := e["extra"].get("own_seconds", e["seconds"])) > 0]


def read_ranks(run_dir: Path, local: Sequence[int], gone: Mapping[int, float]) -> list[RankRun]:
    """The ranks of this machine, from their events and msrun's log."""
    log = run_dir / LAUNCHER_LOG
    codes = dict(_WORKER_EXIT.findall(log.read_text(encoding="utf-8", errors="replace"))) if log.exists() else {}
    ranks = []
    for rank in local:
        events, damaged = read_events(rank_events(run_dir, rank))
        started = last(events, "process") or {}
        # msrun logs the first failure that it sees, and ends the others; their own words tell how they meant to end.
        code, said = codes.get(str(started.get("pid"))), (last(events, "end") or {}).get("code")
        if said is not None and (code is None or int(code) == -signals.SIGTERM):
            code = said
        run = RankRun(rank, events, damaged, gone=gone.get(rank), started=started)
        if code is not None:
            number = int(code)
            run.exit_code = number if number >= 0 else None
            run.signal = signals.Signals(-number).name if number < 0 else None
        ranks.append(run)
    return ranks


def failing_rank(ranks: Sequence[RankRun]) -> RankRun | None:
    """The rank that failed first: the others ended because of it. None if none is known to have failed."""
    failed = [run for run in ranks if run.failed_at is not None]
    # msrun says which exit it acted on; of two seen at the same look that one is the cause.
    return min(failed, key=lambda run: (run.failed_at, run.signal is None and run.exit_code is None), default=None)


def classify_ranks(ended: Ended, ranks: Sequence[RankRun], log: Path) -> tuple[str, str | None, RankRun | None]:
    """Status and reason of the whole run, and the rank that is to blame."""
    if ended.timed_out:
        return "timeout", f"stopped after {ended.seconds:.1f} s{_behind(ranks)}", _slowest_to_finish(ranks)
    if ended.interrupted:
        return "failed", "interrupted by the user", None
    blamed = failing_rank(ranks)
    if blamed is not None:
        status, reason = _how(blamed, ended, log)
        return status, f"rank {blamed.rank}: {reason}", blamed
    if problem := _launcher_problem(ended, ranks):
        return "failed", problem, None
    if bad_rows := sum(event["type"] == "failure" for event in merged_events(ranks)):
        return "failed", inputs_failed(bad_rows), None
    return "ok", None, None


def _launcher_problem(ended: Ended, ranks: Sequence[RankRun]) -> str | None:
    how = f"killed by {ended.signal}" if ended.signal else f"exit code {ended.exit_code}"
    if silent := [run.rank for run in ranks if run.end is None]:
        return f"msrun ended ({how}) before rank {silent[0]} did; see {FOLDER}/scheduler.log"
    if ended.exit_code != 0 and not ended.stopped:
        return f"all ranks ended well, but msrun did not: {how}; see {FOLDER}/scheduler.log"
    return None


def _how(run: RankRun, ended: Ended, log: Path) -> tuple[str, str]:
    if run.end is not None:
        return run.end["status"], run.end["reason"]
    how = f"killed by {run.signal}" if run.signal else f"exit code {run.exit_code}"
    if run.signal is None and run.exit_code is None:
        how = "its process was gone"
    if run.signal in ("SIGKILL", None) and ended.oom_kills:
        return "oom", f"killed by the kernel for lack of memory ({ended.oom_kills})"
    text = log.read_text(encoding="utf-8", errors="replace")[-20000:] if log.exists() else ""
    if found := OOM_TEXT.search(text):
        return "oom", f"{how}; its log says {found[0]!r}"
    done = len([e for e in run.events if e["type"] == "step"])
    return "failed", f"{how} in the middle of the task, after {done} steps"


def _slowest_to_finish(ranks: Sequence[RankRun]) -> RankRun | None:
    """The one rank with the fewest steps, None if several share them."""
    counts = Counter({run.rank: len([e for e in run.events if e["type"] == "step"]) for run in ranks})
    fewest = [run for run in ranks if run.end is None and counts[run.rank] == min(counts.values())]
    return fewest[0] if len(fewest) == 1 else None


def _behind(ranks: Sequence[RankRun]) -> str:
    text = ": longer than runtime.timeout_s allows"
    behind = _slowest_to_finish(ranks)
    if behind is None:
        return text
    counts = {run.rank: len([e for e in run.events if e["type"] == "step"]) for run in ranks}
    most = max(counts.values())
    return text + f"; rank {behind.rank} had finished {counts[behind.rank]} steps, others up to {most}"


def rank_ends(ranks: Sequence[RankRun], blamed: RankRun | None) -> tuple[list[RankEnd], list[int]]:
    """Every rank's row of the record, and the ranks that were slow."""
    rows, medians = [], {}
    for run in ranks:
        seconds = run.seconds()
        if seconds:
            medians[run.rank] = median(seconds)
        status, reason = _own_status(run, blamed)
        rows.append(
            RankEnd(
                rank=run.rank,
                host=run.started.get("host"),
                pid=run.started.get("pid"),
                status=status,
                reason=reason,
                exit_code=run.exit_code,
                signal=run.signal,
                steps=len(seconds),
                step_seconds_median=medians.get(run.rank),
            )
        )
    # Against the fastest: with two ranks a median of all lies between them.
    usual = min(medians.values(), default=0.0)
    return rows, [rank for rank, value in medians.items() if value > SLOW_FACTOR * usual]


def _own_status(run: RankRun, blamed: RankRun | None) -> tuple[Any, str | None]:
    if run.end is not None:
        return run.end["status"], run.end["reason"]
    if not run.started:
        return "failed", "it did not start"
    if run is blamed:
        return "failed", f"killed by {run.signal}" if run.signal else f"exit code {run.exit_code}"
    return "failed", _KILLED_WITH if blamed else "ended with the run"


def merged_events(ranks: Sequence[RankRun]) -> list[dict]:
    """Events of the record: rank 0's, other ranks' work of their own, the longest time where all did the same.

    A step or stage that several ranks report (same index or name, same count so far) is one: its seconds are the
    largest, ``extra.slowest_rank`` of a step says whose. Failures, artifacts and digests that only another rank has
    are added, and the peaks of every rank's phases; notes and metrics are rank 0's.
    """
    merged: list[dict] = []
    known: dict[tuple, dict] = {}
    for run in ranks:
        seen: Counter = Counter()
        for event in run.events:
            if event["type"] == "phase":
                merged.append(event | {"rank": run.rank})
                continue
            name = _name(event)
            key = (*name, seen[name])
            seen[name] += 1
            if key not in known:
                if run is ranks[0] or event["type"] in ("step", "stage", "failure", "artifact", "digest"):
                    known[key] = dict(event)
                    merged.append(known[key])
            elif event["type"] in ("step", "stage"):
                _keep_longest(known[key], event, run.rank, ranks[0].rank)
    steps = sorted((e for e in merged if e["type"] == "step"), key=lambda e: e["index"])
    return [e for e in merged if e["type"] != "step"] + steps


def _name(event: dict) -> tuple:
    keys = {"step": ("index", "tags"), "stage": ("name",), "artifact": ("path",), "digest": ("name",), "note": ("key",)}
    keys |= {"metric": ("name",), "failure": ("row", "item", "message")}
    return (event["type"], *(str(event[key]) for key in keys.get(event["type"], ())))


def _keep_longest(kept: dict, other: dict, rank: int, first: int) -> None:
    if kept["type"] == "stage" and (other.get("process_peak_bytes") or 0) > (kept.get("process_peak_bytes") or 0):
        kept["process_peak_bytes"] = other["process_peak_bytes"]
    longer = other["seconds"] > kept["seconds"]
    if kept["type"] == "step":
        slowest = rank if longer else kept["extra"].get("slowest_rank", first)
        kept["extra"] = kept["extra"] | {"slowest_rank": slowest}
    if longer:
        kept["seconds"] = other["seconds"]


def dealt(ranks: Sequence[RankRun]) -> bool:
    """Whether the ranks worked on steps of their own (rows dealt to them) and not on the same steps together."""
    indices = [{e["index"] for e in run.events if e["type"] == "step"} for run in ranks]
    busy = [found for found in indices if found]
    return len(busy) > 1 and not set.intersection(*busy)


def tail_of(run_dir: Path, blamed: RankRun | None) -> Path:
    """The log to show: the blamed rank's, else msrun's."""
    log = rank_log(run_dir, blamed.rank) if blamed else None
    return log if log is not None and log.exists() else run_dir / LAUNCHER_LOG
