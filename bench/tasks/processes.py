"""How the ranks of a run share its work, from the recipe; imports MindSpore where it is called."""

from __future__ import annotations

from typing import Any


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


def share_vae(vae: Any, processes: Any) -> None:
    """Tiles dealt to the ranks that work on one sample."""
    group = processes.sequence
    if group.size > 1:
        vae.share_tiles(group.size, group.index, lambda x: group.all_gather(x, "vae tiles"))
