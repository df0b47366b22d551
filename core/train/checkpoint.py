"""Checkpoints of a training run: complete or not there at all, and enough to go on with the same bits.

    <out>/checkpoint-000500/state.json           step, numbers, the recipe, the size of every file of the checkpoint
    <out>/checkpoint-000500/state.safetensors    optimiser and the like (shards and an index where large)
    <out>/checkpoint-000500/part-*               or its rows by process, where it is spread (core.train.parts)
    <out>/checkpoint-000500/<export>/            folders in published layouts: transformer, lora, ema
    <out>/latest                                 name of the newest checkpoint

A checkpoint is written as ``.checkpoint-000500.writing``, flushed, then renamed. No MindSpore, and no pickle, here.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError

from core.checkpoint import Checkpoint, read_json, write_checkpoint
from core.errors import UserError
from core.files import write_text
from core.params import ParamSpec
from core.train.parts import Parts, Writers, write_part

LATEST: Final = "latest"
ALONE: Final = Writers()
_FORMAT: Final = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_LEFT_OVER = re.compile(r"\.checkpoint-\d+\.(writing|removing)")


class CheckpointError(UserError):
    """A checkpoint that can't be written or used; one line."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What a run goes on from: ``step`` optimizer steps are done; fp32 arrays and JSON numbers by name; ``facts``."""

    step: int
    arrays: Mapping[str, np.ndarray]
    numbers: dict[str, Any]
    facts: dict[str, Any]
    parted: bool = False
    """Whether ``arrays`` are this process's rows only."""


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints in ``out``, oldest first."""
    found = [path for path in out.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Steps done at a checkpoint, from its name."""
    found = _NAME.fullmatch(folder.name)
    if not found:
        raise CheckpointError(
            f"{folder}: not a checkpoint; need a folder such as {folder.parent / 'checkpoint-000500'}"
        )
    return int(found[1])


def newest(out: Path) -> Path | None:
    """The newest complete checkpoint in ``out``, None without one.

    Not what ``latest`` says: a run killed between the rename and that file leaves it one behind.
    """
    return (checkpoints(out) or [None])[-1]


def clean(out: Path) -> None:
    """Removes what killed runs left half written or half removed in ``out``."""
    for path in out.glob(".checkpoint-*") if out.is_dir() else ():
        if _LEFT_OVER.fullmatch(path.name):
            shutil.rmtree(path)


def save(
    out: Path,
    state: State,
    exports: Mapping[str, Callable[[Path | None], Any]],
    *,
    keep: int | None = None,
    writers: Writers = ALONE,
) -> Path:
    """Writes ``out/checkpoint-<step>``, then ``latest``, then removes all but the ``keep`` newest; the new folder.

    ``exports``: name of a sub-folder -> function that fills it; the processes that are not first call it with None,
    to give what they hold. Every process of ``writers`` has to come here, and all fail if one does.

    Raises:
        CheckpointError: the place is full or not writable. Nothing of the new checkpoint is left, others are intact.
    """
    final = out / f"checkpoint-{state.step:06d}"
    temporary = out / f".{final.name}.writing"

    def begin() -> None:
        clean(out)
        temporary.mkdir(parents=True)

    def finish() -> None:
        _write_state(temporary, state)
        _flush(temporary)
        os.rename(temporary, final)
        _flush_folder(out)
        write_text(out / LATEST, final.name + "\n")

    try:
        _together(writers, begin if writers.first else None)
        for name, fill in exports.items():
            _together(writers, partial(fill, temporary / name if writers.first else None))
        if state.parted:
            _together(writers, partial(write_part, temporary, writers, state.arrays))
        _together(writers, finish if writers.first else None)
    except (OSError, SafetensorError) as error:
        if writers.first:
            shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        last = newest(out)
        raise CheckpointError(
            f"{final}: the checkpoint can't be written ({reason}); {_kept(last)}; make room or correct "
            "output.folder, then run again with --resume"
        ) from error
    if keep is not None and writers.first:
        _prune(out, keep)
    return final


def _together(writers: Writers, work: Callable[[], Any] | None) -> None:
    """Does this process's work; OSError on all of them if one could not."""
    found: Exception | None = None
    try:
        if work is not None:
            work()
    except (OSError, SafetensorError) as error:
        found = error
    if writers.agree(found is None):
        return
    raise found or OSError(errno.EIO, "another process could not write its part")


def _kept(last: Path | None) -> str:
    return f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"


def _write_state(folder: Path, state: State) -> None:
    table = {name: ParamSpec(shape=array.shape) for name, array in state.arrays.items()}
    wrong = [name for name, array in state.arrays.items() if array.dtype != np.float32]
    assert not wrong, wrong
    if table and not state.parted:
        write_checkpoint(folder, "state", table, lambda name: state.arrays[name])
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    values = {"format": _FORMAT, "step": state.step, "numbers": state.numbers, "facts": state.facts, "files": files}
    write_text(folder / "state.json", json.dumps(values, indent=1, allow_nan=False) + "\n")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(folder: Path) -> None:
    """Every file was flushed when it was written; their names are flushed here."""
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        _flush_folder(path)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prune(out: Path, keep: int) -> None:
    for old in checkpoints(out)[:-keep]:
        # Out of sight first: a folder that is being removed must not look like a checkpoint.
        hidden = out / f".{old.name}.removing"
        os.rename(old, hidden)
        shutil.rmtree(hidden)


def load(folder: Path) -> State:
    """Reads and checks a checkpoint.

    Raises:
        CheckpointError: not a checkpoint, another format, or files that are missing or of another size, all named.
    """
    if not (folder / "state.json").is_file():
        raise CheckpointError(f"{folder}: no state.json in it; need a checkpoint's folder, such as checkpoint-000500")
    values = read_json(folder / "state.json")
    if values.get("format") != _FORMAT:
        raise CheckpointError(
            f"{folder}: format {values.get('format')!r}, need {_FORMAT}; use the version that wrote it"
        )
    problems = [problem for name, size in values["files"].items() if (problem := _damage(folder / name, name, size))]
    if problems:
        raise CheckpointError(f"{folder}: damaged checkpoint: {'; '.join(problems)}; resume from an earlier one")
    arrays: Mapping[str, np.ndarray] = Parts(folder)
    if any(name.startswith("state") and "/" not in name for name in values["files"]):
        with Checkpoint(folder) as stored:
            arrays = {name: stored.tensor(name) for name in stored.locations}
    return State(step=values["step"], arrays=arrays, numbers=values["numbers"], facts=values["facts"])


def _damage(path: Path, name: str, size: int) -> str:
    if not path.is_file():
        return f"{name} is missing"
    found = path.stat().st_size
    return "" if found == size else f"{name} has {found} bytes, need {size}"


def split(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``values`` that begin with ``prefix.``, without it."""
    start = prefix + "."
    return {name[len(start) :]: value for name, value in values.items() if name.startswith(start)}


def joined(**parts: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping of several, names prefixed; ``split`` takes it apart again."""
    return {f"{prefix}.{name}": value for prefix, part in parts.items() for name, value in part.items()}
