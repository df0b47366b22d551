"""Which commit changed it: a binary search over commits, each checked out in a worktree of its own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Found:
    """``first_bad`` and what was judged: commit -> True good, False bad, None could not be judged.

    ``suspects``: more than one commit when those between could not be judged.
    """

    first_bad: str | None
    suspects: tuple[str, ...]
    judged: dict[str, bool | None] = field(default_factory=dict)


def bisect(repository: Path, good: str, bad: str, judge: Callable[[str, Path], bool | None]) -> Found:
    """Searches the commits after ``good`` up to ``bad`` (first parents) for the first that ``judge`` calls bad.

    ``judge`` gets a commit and a folder with its files, and returns True (good), False (bad) or None (can't say).
    Both ends are judged first: UserError if ``good`` is not good or ``bad`` not bad, since a search would then end
    at a commit that has nothing to do with it.
    """
    ends = [_commit(repository, good), _commit(repository, bad)]
    path = _git(repository, "rev-list", "--reverse", "--first-parent", f"{ends[0]}..{ends[1]}").split()
    if not path or path[-1] != ends[1]:
        raise UserError(f"--bisect: {good} is not a first-parent ancestor of {bad}: give an older GOOD")
    judged: dict[str, bool | None] = {}

    def ask(commit: str) -> bool | None:
        if commit not in judged:
            with worktree(repository, commit) as folder:
                judged[commit] = judge(commit, folder)
        return judged[commit]

    for name, commit, wanted in (("GOOD", ends[0], True), ("BAD", ends[1], False)):
        if ask(commit) is not wanted:
            was = {True: "passes", False: "fires", None: "can't be judged"}[judged[commit]]
            raise UserError(f"--bisect: the gate {was} at {name} {commit[:12]}: choose another commit")
    return _search(path, ask, judged)


def _search(path: list[str], ask: Callable[[str], bool | None], judged: dict[str, bool | None]) -> Found:
    """``path`` ends in a bad commit and follows a good one; both stay true as it shrinks."""
    while len(path) > 1:
        # The middle first, then outwards: commits that can't be judged are passed over.
        inner = sorted(range(len(path) - 1), key=lambda i: abs(i - (len(path) - 2) / 2))
        answer = None
        for index in inner:
            answer = ask(path[index])
            if answer is not None:
                path = path[index + 1 :] if answer else path[: index + 1]
                break
        if answer is None:
            return Found(first_bad=None, suspects=tuple(path), judged=judged)
    return Found(first_bad=path[0], suspects=(path[0],), judged=judged)


@contextmanager
def worktree(repository: Path, commit: str) -> Iterator[Path]:
    """A folder with the files of ``commit``, gone afterwards; the user's own checkout is not touched."""
    base = Path(tempfile.mkdtemp(prefix="cogbench-bisect-"))
    folder = base / commit[:12]
    try:
        _git(repository, "worktree", "add", "--detach", "--quiet", str(folder), commit)
        yield folder
    finally:
        subprocess.run(
            ["git", "-C", str(repository), "worktree", "remove", "--force", str(folder)],
            capture_output=True,
            check=False,
        )
        shutil.rmtree(base, ignore_errors=True)


def _commit(repository: Path, name: str) -> str:
    return _git(repository, "rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}").strip()


def _git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"--bisect: git {arguments[0]} in {repository} failed: {last}")
    return done.stdout
