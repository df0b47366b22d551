"""How the ranks of a run share its work, from the recipe; imports MindSpore where it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from core.errors import UserError

Found = TypeVar("Found")


def processes_of(recipe: Any) -> Any:
    """``core.parallel.collectives.Processes`` of ``recipe.parallel``, once MindSpore runs; one process is alone."""
    from core.parallel.collectives import alone, joined  # noqa: PLC0415

    parallel = recipe.parallel
    return alone() if recipe.runtime.workers == 1 else joined(parallel.sequence_parallel, parallel.zero_ranks)


def share_transformer(transformer: Any, processes: Any) -> None:
    """Ulysses over the ranks that work on one sample; one rank keeps the model as it is."""
    from core.parallel.ulysses import Ulysses  # noqa: PLC0415

    if processes.sequence.size > 1:
        transformer.communicate(Ulysses(processes.sequence))


def clip_processes(recipe: Any) -> Any:
    """The same for kinds whose rows are dealt to processes: all share each clip with ``vae.parallel: time``."""
    from core.parallel.collectives import alone, joined  # noqa: PLC0415

    workers = recipe.runtime.workers
    return joined(workers) if workers > 1 and recipe.vae.parallel == "time" else alone()


def share_vae(vae: Any, processes: Any, section: Any) -> None:
    """What the ranks that work on one sample share, by the recipe's ``vae``: its tiles, or its chunks in time."""
    group = processes.sequence
    if group.size == 1:
        return
    if section.parallel == "tiles" or (section.parallel == "auto" and section.tiling is not None):
        vae.share_tiles(group.size, group.index, lambda x: group.all_gather(x, "vae tiles"))
    else:
        vae.share_time(neighbours(group))


def neighbours(group: Any) -> Any:
    """``core.vae.over_time.Neighbours`` of a group of processes."""
    from core.vae.over_time import Neighbours  # noqa: PLC0415

    return Neighbours(
        size=group.size,
        index=group.index,
        hand_on=lambda x: group.to_next(x, "vae time"),
        publish=lambda x, owner: group.broadcast(x, "vae time", owner),
        agree=group.agree,
    )


def agreed(group: Any, find: Callable[[], Found]) -> Found:
    """What ``find`` returns, if it does on every process of the group; else a UserError on all of them.

    Whoever went on alone would meet the others' next message with another one.
    """
    found, problem = None, None
    try:
        found = find()
    except UserError as error:
        problem = error
    if not group.agree(problem is None):
        raise problem or UserError("another process could not use this input; see its log")
    assert found is not None
    return found
