"""What a valid recipe may ask for that this version can't execute yet."""

from __future__ import annotations

from recipes.schema import PipelineRecipe, Recipe


def unsupported(recipe: Recipe) -> list[str]:
    """One line for each thing that ``cogbench run`` has to refuse; empty if the recipe can be executed.

    ``check``, ``show`` and ``plan`` do not need this. Whether the device exists is not decided here.
    """
    if isinstance(recipe, PipelineRecipe):
        return [f"stages.{stage.name}.{line}" for stage in recipe.stages for line in unsupported(stage)]
    lines = []
    if recipe.runtime.workers > 1:
        lines.append(f"runtime.workers: got {recipe.runtime.workers}, this version runs 1 process")
    parallel = getattr(recipe, "parallel", None)
    if parallel is not None and parallel.sequence_parallel > 1:
        lines.append(f"parallel.sequence_parallel: got {parallel.sequence_parallel}, this version supports 1")
    if parallel is not None and parallel.zero_stage > 0:
        lines.append(f"parallel.zero_stage: got {parallel.zero_stage}, this version supports 0")
    return lines
