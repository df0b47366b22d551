"""Binary search over commits, on a small made-up git repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.bisect import bisect
from core.errors import UserError


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """Eleven commits that write 0 to 10 into a file; returns the folder and the commits in order."""
    folder = tmp_path / "repository"
    folder.mkdir()
    _git(folder, "init", "-q")
    commits = []
    for value in range(11):
        (folder / "bytes.txt").write_text(str(value))
        _git(folder, "add", ".")
        _git(folder, "commit", "-q", "-m", f"set {value}")
        commits.append(_git(folder, "rev-parse", "HEAD"))
    (folder / "bytes.txt").write_text("my unfinished work")
    return folder, commits


def _value(folder: Path) -> int:
    return int((folder / "bytes.txt").read_text())


@pytest.mark.parametrize("first_bad", [1, 4, 9, 10])
def test_finds_the_first_commit_that_fires_in_few_questions(repository, first_bad):
    folder, commits = repository
    found = bisect(folder, commits[0], "HEAD", lambda commit, files: _value(files) < first_bad)
    assert found.first_bad == commits[first_bad]
    assert len(found.judged) <= 2 + 4
    assert (folder / "bytes.txt").read_text() == "my unfinished work", "the user's own checkout is not touched"
    assert _git(folder, "worktree", "list", "--porcelain").count("worktree ") == 1
    assert commits == _git(folder, "rev-list", "--reverse", "HEAD").split()


def test_passes_over_commits_that_can_not_be_judged(repository):
    folder, commits = repository

    def judge(commit, files):
        return None if _value(files) in (4, 5) else _value(files) < 7

    assert bisect(folder, commits[0], commits[10], judge).first_bad == commits[7]


def test_names_all_suspects_when_those_between_can_not_be_judged(repository):
    folder, commits = repository

    def judge(commit, files):
        return None if 3 <= _value(files) <= 6 else _value(files) < 6

    found = bisect(folder, commits[0], commits[10], judge)
    assert found.first_bad is None
    assert found.suspects == tuple(commits[3:8])


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (3, 10, "fires at GOOD"),
        (0, 1, "passes at BAD"),
        (10, 0, "not a first-parent ancestor"),
        (0, 0, "not a first-parent ancestor"),
    ],
)
def test_ends_that_are_not_what_they_are_called(repository, good, bad, message):
    folder, commits = repository
    with pytest.raises(UserError, match=message):
        bisect(folder, commits[good], commits[bad], lambda commit, files: _value(files) < 2)


def test_an_unknown_commit_or_folder_is_the_users_mistake(repository, tmp_path):
    folder, commits = repository
    with pytest.raises(UserError, match="git rev-parse"):
        bisect(folder, "no-such-commit", commits[0], lambda commit, files: True)
    with pytest.raises(UserError, match="git rev-parse"):
        bisect(tmp_path, "HEAD", "HEAD", lambda commit, files: True)


def test_a_judge_that_breaks_leaves_no_worktree(repository):
    folder, commits = repository

    def judge(commit, files):
        raise RuntimeError("no card")

    with pytest.raises(RuntimeError, match="no card"):
        bisect(folder, commits[0], commits[10], judge)
    assert _git(folder, "worktree", "list", "--porcelain").count("worktree ") == 1
