"""Records with invented values for tests: every name says "invented", nothing here was measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import av
import numpy as np

from bench import record as records
from bench.timer import summarize

ENVIRONMENT = {
    "cpu": {"model": "Invented CPU", "logical_cores": 2, "governor": None},
    "python": {"version": "3.11.0"},
    "packages": {"mindspore": "0.0.invented"},
    "ascend": {"cards": [], "driver": None},
}
ENVIRONMENT_REASONS = {
    "environment.cpu.governor": "no cpufreq in /sys",
    "environment.ascend.driver": "no Ascend driver on this machine",
}
NO_DEVICE = "MindSpore's CPU backend returns 0 for every memory counter"
PROMPT = "an invented red ball rolls to the right"


def steps(count: int, *, first: str = "compile") -> list[dict[str, Any]]:
    """``count`` training steps with a falling loss; the first is tagged and slow."""
    made = []
    for index in range(count):
        loss = 1.2 * 0.9**index + 0.03 * (index % 3)
        seconds = 31.0 if index == 0 and first else 0.42 + 0.03 * ((index * 7) % 5) / 5
        tags = (first,) if index == 0 and first else ()
        step = {"index": index, "seconds": seconds, "loss": loss, "loss_hex": loss.hex(), "tags": tags, "samples": 2}
        made.append(step)
    return made


def fields(kind: str = "train", name: str = "invented", **changes: Any) -> dict[str, Any]:
    """The fields of a valid record; reasons for its nulls are filled in."""
    typed = [records.Step(**step) for step in changes.pop("steps", [])]
    summary, reasons = summarize(typed, cards=None, no_cards_reason="ran on the CPU: there is no card")
    peak = changes.pop("process_peak_bytes", 3 * 2**29)
    rank = {"rank": 0, "process_peak_bytes": peak}
    memory = {"process_peak_bytes": peak, "process_hwm_bytes": peak, "max_rank": 0, "per_rank": [rank]}
    reasons |= dict.fromkeys(_device_keys(), NO_DEVICE) | ENVIRONMENT_REASONS
    made_fields: dict[str, Any] = {
        "id": name,
        "status": "ok",
        "kind": kind,
        "name": name,
        "recipe": {"kind": kind, "name": name, "runtime": {"device": "cpu"}},
        "recipe_digest": hashlib.sha256(name.encode()).hexdigest(),
        "command": ("cogbench", "run", f"{name}.yaml"),
        "started": "2000-01-01T00:00:00Z",
        "seconds": 12.5,
        "exit_code": 0,
        "code": {"commit": "0123456789abcdef0123", "dirty": False, "digest": "f" * 64},
        "environment": ENVIRONMENT,
        "steps": typed,
        "summary": summary,
        "memory": memory,
        "compile_seconds": 31.0 if typed else None,
    }
    if not typed:
        reasons["compile_seconds"] = "no step or stage was tagged compile"
    merged = made_fields | changes
    merged["null_reasons"] = reasons | changes.get("null_reasons", {})
    return merged


def _device_keys() -> list[str]:
    names = ("device_allocated_peak_bytes", "device_reserved_peak_bytes")
    return [f"memory.{part}{name}" for part in ("", "per_rank.0.") for name in names]


def write(folder: Path, kind: str = "train", name: str = "invented", **changes: Any) -> Path:
    """Writes a record into ``folder`` and returns the folder."""
    records.write(records.make(**fields(kind, name, **changes)), folder)
    return folder


def rewrite(folder: Path, change) -> None:
    """Damages the record of ``folder``: ``change`` gets the parsed JSON and alters it in place."""
    file = folder / records.FILE_NAME
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def video(path: Path, *, frames: int = 9, height: int = 48, width: int = 80) -> Path:
    """An mp4 of a square that moves to the right and turns from blue to red."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            image = np.full((height, width, 3), 220, np.uint8)
            left = round((width - 20) * index / max(frames - 1, 1))
            red = 255 * index // max(frames - 1, 1)
            image[14:34, left : left + 20] = (red, 40, 255 - red)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def artifact(path: Path, relative: str, kind: str = "video", **meta: Any) -> dict[str, Any]:
    """The entry of a record for a file that exists."""
    return {"kind": kind, "path": relative, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "meta": meta}


def pipeline(folder: Path, name: str = "invented-quickstart", *, videos: int = 2) -> Path:
    """A pipeline of six stages with its record, their records and generated videos."""
    kinds = ("make-clips", "make-model", "encode-text", "encode-video", "train", "generate")
    children = []
    for number, kind in enumerate(kinds, start=1):
        stage = folder / "stages" / f"{number:02d}-{kind}"
        started = f"2000-01-01T00:0{number}:00Z"
        changes: dict[str, Any] = {"id": f"{name}/{kind}", "seconds": 3.0 * number, "started": started}
        changes["stages"] = [
            {"name": "load", "seconds": 0.4 * number, "items": None, "frames": None},
            {"name": f"load/{kind}", "seconds": 2.1 * number, "items": 4, "frames": 36, "process_peak_bytes": 2**30},
        ]
        if kind == "train":
            changes["steps"] = steps(20)
            changes["metrics"] = {"parameters": {"value": 52_000_000, "unit": ""}}
        if kind == "generate":
            changes["steps"] = [s | {"loss": None, "loss_hex": None, "frames": 9} for s in steps(12)]
            files = [video(stage / "out" / f"{i:03d}.mp4") for i in range(videos)]
            changes["artifacts"] = [
                artifact(file, f"out/{file.name}", prompt=f"{PROMPT}, number {i}") for i, file in enumerate(files)
            ]
        write(stage, kind, f"{name}/{kind}", **changes)
        children.append(f"stages/{stage.name}/record.json")
    described = {"kind": "pipeline", "name": name, "description": "Invented values: nothing here was measured."}
    common = {"common": {"runtime": {"device": "cpu"}}}
    return write(folder, "pipeline", name, children=children, recipe=described | common, seconds=63.0)
