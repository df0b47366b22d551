"""What bench needs from recipes, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.pipeline import StagePlan
from core.errors import UserError

# Long values push their origin to the right instead of moving the column of all others.
_ORIGIN_COLUMN = 60


def open_recipe(path: Path, overrides: list[str]) -> Any:
    """``recipes.load.load_recipe``; problems of the recipe are a UserError that lists them all."""
    from recipes.load import load_recipe  # noqa: PLC0415

    return load_recipe(path, overrides)


def shown(loaded: Any) -> str:
    """Text for ``cogbench show``: each effective value with the place it came from, and the digest."""
    from recipes.load import show  # noqa: PLC0415
    from recipes.render import scalar  # noqa: PLC0415

    rows = [(f"{key}: {scalar(value)}", origin) for key, value, origin in show(loaded)]
    width = min(max(len(left) for left, _ in rows), _ORIGIN_COLUMN)
    lines = [f"{left:{width}}  # {origin}" for left, origin in rows]
    return "\n".join([f"# {loaded.path}, digest {loaded.digest}", *lines])


def refuse_unsupported(loaded: Any) -> None:
    """UserError when the recipe is valid but asks for something this version can't run."""
    from recipes.support import unsupported  # noqa: PLC0415

    if loaded.data["kind"] == "paired":
        raise UserError(f"{loaded.path}: kind paired has two sides: run it with cogbench paired {loaded.path}")
    if found := unsupported(loaded.recipe):
        raise UserError(f"{loaded.path}: not supported by this version: {'; '.join(map(str, found))}")


def stage_plans(loaded: Any) -> list[StagePlan]:
    """The stages of a pipeline, complete and in order, with the digests they have before references are resolved."""
    from recipes.digest import digest  # noqa: PLC0415
    from recipes.pipeline import skipped_stages  # noqa: PLC0415

    skipped = set(skipped_stages(loaded.data))
    plans = []
    for stage in loaded.data["stages"]:
        data = {key: value for key, value in stage.items() if key != "only_if_used"}
        name, kind = stage["name"], stage["kind"]
        if (repeats := stage["runtime"]["repeats"]) > 1:
            key = f"stages.{name}.runtime.repeats"
            raise UserError(
                f"{loaded.path}: {key}: got {repeats}, a stage runs once: set runtime.repeats of the pipeline"
            )
        plans.append(StagePlan(name=name, kind=kind, data=data, digest=digest(data), skipped=name in skipped))
    return plans
