"""A task for tests: does what ``recipe["action"]`` says, in a real child process, without MindSpore."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.files import atomic_path


def run(recipe: dict, ctx) -> None:
    """Calls the action's function below."""
    ACTIONS[recipe["action"]](recipe, ctx)


def everything(recipe: dict, ctx) -> None:
    with ctx.stage("outer"), ctx.stage("inner", items=2, frames=34):
        pass
    for index in ctx.progress(range(3), "steps", total=3):
        tags = ("compile",) if index == 0 else ()
        ctx.step(index, 0.5 if index == 0 else 0.25, loss=0.1 * index, tags=tags, samples=2, frames=34, tokens=100)
    ctx.metric("psnr", 31.5, "dB")
    ctx.metric("ssim", float("nan"), "1")
    ctx.metric("fvd", None, "1", reason="needs 2048 videos")
    ctx.digest("latents", np.arange(6, dtype=np.float32).reshape(2, 3))
    ctx.note("decoder", {"backend": "pyav", "sizes": (np.int64(8), 3)})
    with atomic_path(ctx.out / "clip.txt") as file:
        file.write_text("frames")
    ctx.artifact("video", ctx.out / "clip.txt", fps=np.float32(8))
    print("größe ✓")


def exception(recipe: dict, ctx) -> None:
    ctx.step(0, 0.1, loss=1.0)
    raise RuntimeError("first line\nsecond line")


def user_error(recipe: dict, ctx) -> None:
    raise UserError("data.csv: got none,\n need a file")


def failed_rows(recipe: dict, ctx) -> None:
    ctx.row_failed(3, "vid003.mp4", "moov atom\nnot found")
    ctx.row_failed(None, "vid004.mp4", "empty")


def nan_loss(recipe: dict, ctx) -> None:
    ctx.step(0, 0.1, loss=1.0)
    ctx.step(1, 0.1, loss=float("nan"))


def abort(recipe: dict, ctx) -> None:
    ctx.step(0, 0.1, loss=1.0)
    held = b"1" * recipe.get("hold", 0)
    assert len(held) == recipe.get("hold", 0)
    os.abort()


def address_space(recipe: dict, ctx) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20, used + 64 * 2**20))
    bytearray(2**30)


def takes_x_gib(recipe: dict, ctx) -> None:
    ctx.note("bytes", len(bytearray(recipe["x"] * 2**30)))


def backend_out_of_memory(recipe: dict, ctx) -> None:
    raise RuntimeError("Memory not enough: device 0 needs 40 GB")


def dies_with_memory_text(recipe: dict, ctx) -> None:
    print("[ERROR] Failed to alloc memory pool", flush=True)
    os.abort()


def sleep(recipe: dict, ctx) -> None:
    """Holds a half-written file open until it is killed."""
    if recipe.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "60"])
    with atomic_path(ctx.out / "video.mp4") as file:
        file.write_text("half")
        (ctx.out / "pids").write_text(f"{os.getpid()} {child.pid}")
        print("sleeping", flush=True)
        time.sleep(60)


def damaged_events(recipe: dict, ctx) -> None:
    os.write(ctx._events._file, b'{"type": "st')


def write_to(recipe: dict, ctx) -> None:
    (ctx.out / "result.txt").write_text(recipe.get("text", ""))


def read_from(recipe: dict, ctx) -> None:
    ctx.note("read", Path(recipe["data"]["csv"]).read_text())


def steady(recipe: dict, ctx) -> None:
    for index, seconds in enumerate(recipe["seconds"]):
        ctx.step(index, seconds)


def from_file(recipe: dict, ctx) -> None:
    """Steps and tensors as the file says: what a second run computes is in the test's hand."""
    values = json.loads(Path(recipe["values"]).read_text())
    for index, loss in values["losses"].items():
        ctx.step(int(index), 0.1, loss=float.fromhex(loss), samples=1, extra={"data_seconds": time.time()})
    for name, numbers in values["tensors"].items():
        ctx.tensor(*name.split("/", 1), np.array(numbers, np.float32))
    (ctx.out / "out.txt").write_text(values["text"])
    ctx.artifact("table", ctx.out / "out.txt")


def kill(recipe: dict, ctx) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def peak_then_killed(recipe: dict, ctx) -> None:
    with ctx.stage("load"):
        held = b"1" * 200_000_000
        del held
    ctx.step(0, 0.1)
    kill(recipe, ctx)


def killed_unless_resumed(recipe: dict, ctx) -> None:
    if recipe["train"].get("resume") != "latest":
        kill(recipe, ctx)


ACTIONS = {f.__name__: f for f in (everything, exception, user_error, failed_rows, nan_loss, abort, address_space)}
ACTIONS |= {f.__name__: f for f in (backend_out_of_memory, dies_with_memory_text, sleep, damaged_events, write_to)}
ACTIONS |= {f.__name__: f for f in (read_from, from_file, takes_x_gib, steady, kill, killed_unless_resumed)}
ACTIONS |= {"peak_then_killed": peak_then_killed}
ACTIONS |= {
    "nothing": lambda recipe, ctx: None,
    "sys_exit": lambda recipe, ctx: sys.exit(0),
    "hard_exit": lambda recipe, ctx: os._exit(0),
}
