"""One session of a pair: two fresh processes, the same weights and inputs, calls in turn, two records."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.child_env import full_environment
from bench.environment import code_root
from bench.paired_process import SideError, SideProcess
from bench.record_parts import Step

SIDES = ("ours", "diffusers")
# Parity tests bound each module far tighter; this only refuses to compare the times of different work.
DIFFERENT_WORK = 1e-3
PATIENCE = 600.0
# Which kind's environment a case has: the instruction set of convolutions depends on it.
_LIKE = {
    "transformer": "train", "train": "train", "vae-encode": "encode-video", "vae-decode": "decode-latents",
    "text-encode": "encode-text", "generate": "generate",
}  # fmt: skip


@dataclass
class SideResult:
    """What one side did: its calls, what its process said at the beginning and the end."""

    steps: list[Step] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    prepared: dict[str, Any] | None = None
    ended: dict[str, Any] | None = None

    def counted(self) -> list[float]:
        """Seconds of the measured calls."""
        return [step.seconds for step in self.steps if not step.tags]


@dataclass
class Session:
    """Both sides' results; ``error`` of the outputs (None if it was not reached), ``problem``: why it failed."""

    sides: dict[str, SideResult]
    seconds: float = 0.0
    error: float | None = None
    problem: str | None = None


def environment_of(data: dict[str, Any], side: str) -> dict[str, str]:
    """The variables of one side's process. Those that help MindSpore's kernels are not set for torch."""
    like = {"kind": _LIKE[data["case"]], "seed": data["seed"], "runtime": data["runtime"]}
    if side != "ours":
        like["runtime"] = data["runtime"] | {"convolution_isa": "default"}
    return full_environment(like, code_root())


def run_session(data: dict[str, Any], logs: Path, modules: Mapping[str, str] | None = None) -> Session:
    """Runs the recipe ``data`` once; what the processes print goes to ``logs``, and stays there after a failure.

    Never raises for a side's failure.

    ``modules`` replaces a side's work; only tests set it.
    """
    session = Session({side: SideResult() for side in SIDES})
    start = time.monotonic()
    logs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="paired-"))
    processes: dict[str, SideProcess] = {}
    try:
        for side in SIDES:
            job = folder / f"{side}.json"
            module = (modules or {}).get(side)
            job.write_text(json.dumps({"recipe": data, "folder": str(folder / "model"), "module": module}))
            patience = data["runtime"]["timeout_s"] or PATIENCE
            processes[side] = SideProcess(
                side, job, environment_of(data, side), (logs / f"{side}.log").absolute(), patience
            )
            session.sides[side].prepared = processes[side].ask("prepare")
        _check_inputs(session)
        _calls(data, session, processes, folder)
        for side in SIDES:
            session.sides[side].ended = processes[side].ask("end")
    except SideError as error:
        session.problem = str(error)
    finally:
        for process in processes.values():
            process.close()
        shutil.rmtree(folder, ignore_errors=True)
    if session.problem is None:
        # Records of good sessions are kept in a repository; what libraries print names this machine's folders.
        for side in SIDES:
            (logs / f"{side}.log").unlink()
    session.seconds = time.monotonic() - start
    return session


def _check_inputs(session: Session) -> None:
    digests = {(session.sides[side].prepared or {}).get("inputs") for side in SIDES}
    if len(digests) != 1:
        raise SideError("the two sides drew different inputs: their NumPy differs, install one version for both")


def _calls(data: dict[str, Any], session: Session, processes: dict[str, SideProcess], folder: Path) -> None:
    """Warm-up and pairs. The order alternates, so that nobody always follows the other."""
    warmup, losses = data["warmup"], {side: [] for side in SIDES}
    for index in range(warmup + data["pairs"]):
        tags = ("compile",) if index == 0 else ("warmup",) if index < warmup else ()
        for side in SIDES if index % 2 else reversed(SIDES):
            saved = str(folder / f"{side}.npy") if index == 0 else None
            answer = processes[side].ask("call", index=index, save=saved)
            losses[side].append(answer.get("loss"))
            session.sides[side].steps.append(_step(data, index, answer, tags))
            if not tags:
                session.sides[side].cpu_seconds.append(answer["cpu_seconds"])
        if index == 0 and data["case"] != "train":
            paths = {key: str(folder / f"{side}.npy") for key, side in zip(("ours", "theirs"), SIDES, strict=True)}
            answer = processes["diffusers"].ask("compare", **paths)
            if answer["error"] is None:
                raise SideError(f"the outputs have different shapes: {answer['shapes']}")
            _agree(session, answer["error"])
        if data["case"] == "train":
            pairs = zip(losses["ours"], losses["diffusers"], strict=True)
            _agree(session, max(abs(a - b) / abs(b) for a, b in pairs))


def _agree(session: Session, error: float) -> None:
    session.error = error
    if not error <= DIFFERENT_WORK:
        what = f"the outputs differ by {error:.1e}, need at most {DIFFERENT_WORK:g}"
        raise SideError(f"{what}: the sides did not do the same work, so their times are not compared")


def _step(data: dict[str, Any], index: int, answer: dict[str, Any], tags: tuple[str, ...]) -> Step:
    loss, count = answer.get("loss"), data["batch_size"]
    frames = count * data["video"]["frames"] if data["case"] in ("vae-encode", "vae-decode", "generate") else None
    return Step(
        index=index, seconds=answer["seconds"], loss=loss, loss_hex=None if loss is None else float(loss).hex(),
        tags=tags, samples=count, frames=frames,
    )  # fmt: skip
