"""Which rank this process is, and the check that all ranks run the same thing. Lives in the child process."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import UserError

# What msrun sets in the environment of the processes that it starts.
_ROLE, _RANK = "MS_ROLE", "RANK_ID"


@dataclass(frozen=True)
class Rank:
    """Number ``index`` of ``of`` processes, ``here`` of them on each machine, with neighbouring numbers.

    ``identity``: what must be equal on all of them.
    """

    index: int = 0
    of: int = 1
    identity: Mapping[str, str] | None = None
    here: int = 1


_current = Rank()


def current() -> Rank:
    """This process's rank; 0 of 1 where nothing was set."""
    return _current


def become(rank: Rank) -> None:
    """Sets what ``current`` returns; ``bench.child`` does, once."""
    global _current  # noqa: PLW0603 - a process is one rank for all its life
    _current = rank


def is_scheduler(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether msrun started this process to bring the ranks together, not to compute."""
    return environment.get(_ROLE) == "MS_SCHED"


def rank_number(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank as msrun numbers it."""
    return int(environment[_RANK])


def identity_of(recipe_digest: str) -> dict[str, str]:
    """What must be equal on all ranks, read where this process runs: recipe, git commit, the source files."""
    from bench.environment import code  # noqa: PLC0415 - only ranks of several need it

    ran = code({})
    return {
        "recipe digest": recipe_digest,
        "code commit": ran.commit or "none",
        "code digest": ran.digest,
        "host": socket.gethostname(),
    }


def refuse_differences(identities: Sequence[Mapping[str, Any]]) -> None:
    """UserError unless all ranks' identities agree; names the first rank that differs from rank 0, and in what."""
    first = identities[0]
    for rank, other in enumerate(identities):
        for key in ("recipe digest", "code commit", "code digest"):
            if other[key] != first[key]:
                raise UserError(
                    f"rank {rank} ({other['host']}) has {key} {other[key][:12]}, rank 0 ({first['host']}) has "
                    f"{first[key][:12]}: need the same on all: give every node the same recipe and checkout"
                )
