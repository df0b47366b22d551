"""What a valid recipe may ask for that this version can't execute yet."""

from __future__ import annotations

from recipes.schema import PipelineRecipe, Recipe

# Kinds whose rows are dealt to the processes, each of which works alone.
_DEALT = ("encode-text", "encode-video", "decode-latents")
# Kinds whose processes work together on a sample, and the ZeRO stages that each knows.
_TOGETHER: dict[str, tuple[int, ...]] = {"train": (0, 1, 2, 3), "generate": (0,)}


def unsupported(recipe: Recipe) -> list[str]:
    """One line for each thing that ``cogbench run`` has to refuse; empty if the recipe can be executed.

    ``check``, ``show`` and ``plan`` do not need this. Whether the device exists is not decided here.
    """
    if isinstance(recipe, PipelineRecipe):
        return [f"stages.{stage.name}.{line}" for stage in recipe.stages for line in unsupported(stage)]
    lines, kind = [], recipe.kind
    parallel = getattr(recipe, "parallel", None)
    stages = _TOGETHER.get(kind, (0,))
    if recipe.runtime.workers > 1 and kind not in (*_DEALT, *_TOGETHER):
        lines.append(f"runtime.workers: got {recipe.runtime.workers}, kind {kind} runs 1 process in this version")
    if parallel is not None and parallel.sequence_parallel > 1 and kind not in _TOGETHER:
        lines.append(f"parallel.sequence_parallel: got {parallel.sequence_parallel}, this version supports 1")
    if parallel is not None and parallel.zero_stage not in stages:
        allowed = ", ".join(map(str, stages))
        lines.append(f"parallel.zero_stage: got {parallel.zero_stage}, this version supports {allowed}")
    return lines
