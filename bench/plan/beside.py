"""The plan of a run, written into its record beside what was counted and measured."""

from __future__ import annotations

from typing import Any

from core.errors import UserError

_KEPT = (
    "kind", "planned", "reason", "sizes", "profile", "phases", "peak", "limit", "fits", "flops", "communication",
    "time",
)  # fmt: skip


def planned(data: dict[str, Any]) -> dict[str, Any]:
    """The plan of an effective recipe, as ``notes.plan`` has it; where there is none, ``planned: false`` and why.

    For the default profile of the recipe's device. A missing folder or profile is a reason, no error: the run goes on.
    """
    from bench.plan.planner import plan_recipe  # noqa: PLC0415 - not needed by `cogbench check`
    from bench.plan.profiles import default_name, load_profile  # noqa: PLC0415
    from bench.plan.workload import sizes_of  # noqa: PLC0415
    from recipes.load import from_dict  # noqa: PLC0415

    try:
        recipe = from_dict(data)
        section = getattr(recipe, "model", None)
        sizes = sizes_of(section) if section is not None else None
        made = plan_recipe(recipe, sizes, load_profile(default_name(recipe.runtime.device)))
    except UserError as error:
        return {"planned": False, "reason": str(error)}
    return {key: made[key] for key in _KEPT if key in made}
