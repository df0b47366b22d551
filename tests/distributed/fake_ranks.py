"""Tasks of several ranks for tests, without MindSpore: msrun starts them and its scheduler has nothing to do."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from core.errors import UserError
from core.files import atomic_path

COMMUNICATES = False


def run(recipe: dict, ctx) -> None:
    """Steps of ``recipe["step_seconds"]``; what goes wrong is ``recipe["fault"]``, on rank ``recipe["at_rank"]``."""
    faulty = ctx.rank.index == recipe.get("at_rank")
    first = (recipe["train"].get("resume") == "latest" and recipe["steps"] // 2) or 0
    ctx.note("rank", ctx.rank.index)
    for index in range(first, recipe["steps"]):
        begin = time.perf_counter()
        time.sleep(recipe["step_seconds"] * (recipe.get("slowdown", 1) if faulty else 1))
        if faulty and index == recipe["steps"] // 2 and not first:
            FAULTS[recipe.get("fault", "none")](ctx)
        seconds = time.perf_counter() - begin
        ctx.step(index, seconds, loss=1.0 / (index + 1) + ctx.rank.index, samples=ctx.rank.of)
    print(f"rank {ctx.rank.index} is done", flush=True)
    for row in ctx.mine(range(recipe.get("bad_rows", 0))):
        ctx.row_failed(row, f"vid{row}.mp4", "no such file")
    for row in ctx.mine(range(recipe.get("files", 0))):
        with atomic_path(ctx.out / f"{row}.txt") as file:
            file.write_text(str(row))
        ctx.artifact("table", ctx.out / f"{row}.txt")


def wrong_input(ctx) -> None:
    raise UserError("data.csv: got none, need a file")


def broken(ctx) -> None:
    raise RuntimeError("first line\nsecond line")


def killed(ctx) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(ctx) -> None:
    """Neither goes on nor hears SIGTERM, with a half file open and a process of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "120"])
    with atomic_path(ctx.out / "video.mp4") as file:
        file.write_text("half")
        (ctx.out / "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(120)


FAULTS = {"none": lambda ctx: None, "wrong_input": wrong_input, "broken": broken, "killed": killed, "hangs": hangs}
