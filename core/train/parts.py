"""Checkpoints of several processes: each writes its part, all of them say whether they could, one renames.

    part-00002-of-00004.safetensors      rows of the tensors that this process holds; whole ones are in the first part

A tensor is its rows in all parts behind each other, so a run of another layout reads it as easily as one of the same.
No MindSpore here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from core.files import atomic_path


def _always(ok: bool) -> bool:
    return ok


@dataclass(frozen=True)
class Writers:
    """The processes that write a checkpoint together; ``agree(ok)`` is whether all of them are ok, on each.

    Process ``index`` of ``count`` holds part ``index``; where several hold the same, copy 0 writes it.
    """

    index: int = 0
    count: int = 1
    agree: Callable[[bool], bool] = _always
    copy: int = 0

    @property
    def first(self) -> bool:
        """Whether this one writes what is there once."""
        return self.index == 0 and self.copy == 0


def write_part(folder: Path, writers: Writers, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes this process's rows if no other copy does; empty tensors are left out."""
    if writers.copy:
        return
    held = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array.size}
    with atomic_path(folder / f"part-{writers.index:05d}-of-{writers.count:05d}.safetensors") as temporary:
        save_file(held, temporary, {"format": "pt"})


class Parts(Mapping[str, np.ndarray]):
    """Whole tensors of a folder's parts, each put together when it is asked for."""

    def __init__(self, folder: Path):
        self._paths = sorted(folder.glob("part-*-of-*.safetensors"))
        self._where: dict[str, list[Path]] = {}
        for path in self._paths:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    self._where.setdefault(name, []).append(path)

    def __getitem__(self, name: str) -> np.ndarray:
        with ExitStack() as stack:
            files: list[Any] = [stack.enter_context(safe_open(path, framework="np")) for path in self._where[name]]
            return np.concatenate([file.get_tensor(name) for file in files]) if files else np.zeros(0, np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)
