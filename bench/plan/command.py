"""``cogbench plan``: reads recipe and profile, and says the plan as text or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.codes import MISMATCH, PASS
from bench.plan.dryrun import check_folder, dry_run, keep
from bench.plan.planner import plan_recipe
from bench.plan.profiles import default_name, load_profile
from bench.plan.workload import sizes_of
from bench.recipe_access import open_recipe
from bench.render import duration, gib
from core.errors import UserError


def plan_command(
    path: Path,
    overrides: list[str],
    *,
    profile: str | None,
    model: str | None,
    dry: bool = False,
    into: Path | None = None,
) -> tuple[int, dict[str, Any], str]:
    """Exit code (1 where the recipe does not fit), the plan as data, and as text.

    Raises:
        UserError: a wrong recipe, profile or model; with ``dry`` also where DryRun can't be done, or ``into``, the
            folder that its peak is kept in, is not that of a run of this recipe.
    """
    loaded = open_recipe(path, overrides)
    recipe = loaded.recipe
    if recipe.kind == "pipeline":
        made_by = {s.name: s.model.preset for s in recipe.stages if s.kind == "make-model"}
        made = [{"name": s.name, **_one(s, profile, model or _made(s, made_by))} for s in recipe.stages]
        data = {"recipe": str(path), "digest": loaded.digest, "kind": "pipeline", "stages": made}
        text = "\n\n".join(_text(stage["name"], stage) for stage in made)
        fits = [stage["fits"] for stage in made if stage["planned"]]
    else:
        data = {"recipe": str(path), "digest": loaded.digest, **_one(recipe, profile, model)}
        if into is not None:
            if not dry:
                raise UserError("--into: got a folder without --dry-run, whose peak it is for")
            check_folder(into, loaded.digest)
        if dry:
            data["dry_run"] = dry_run(path, overrides)
        if into is not None:
            keep(into, loaded.digest, data["dry_run"])
        text = _text(f"{path} ({recipe.kind})", data)
        fits = [data["fits"]] if data["planned"] else []
    return (MISMATCH if False in fits else PASS), data, text


def _made(stage: Any, made_by: dict[str, str]) -> str | None:
    """The preset of the earlier stage that makes the model which ``stage`` reads."""
    path = getattr(getattr(stage, "model", None), "path", None) or ""
    return made_by.get(path[1:].split("/")[0]) if path.startswith("@") else None


def _one(recipe: Any, profile: str | None, model: str | None) -> dict[str, Any]:
    chosen = load_profile(profile or default_name(recipe.runtime.device))
    section = getattr(recipe, "model", None)
    sizes = sizes_of(section, model) if section is not None else None
    return plan_recipe(recipe, sizes, chosen)


def _text(title: str, data: dict[str, Any]) -> str:
    if not data["planned"]:
        return f"{title}: not planned: {data['reason']}"
    lines = [title, f"sizes: {data['sizes']}; profile: {data['profile']}"]
    if "size" in data:
        lines.append("size: " + ", ".join(f"{key} {value}" for key, value in data["size"].items()))
    lines += ["", _table(data["phases"], data["peak"]["phase"]), ""]
    limit = data["limit"]
    verdict = {True: "fits", False: "DOES NOT FIT", None: "unknown: the profile has no memory"}[data["fits"]]
    lines.append(f"peak {gib(data['peak']['total'])} of {gib(limit)} a card, in: {data['peak']['phase']}: {verdict}")
    lines += _cost_lines(data)
    lines += _suggestion_lines(data)
    if "dry_run" in data:
        found = data["dry_run"]
        lines.append(f"DryRun: {gib(found['peak_bytes'])} at its peak (without fragments), {found['operations']}")
    return "\n".join(lines)


def _table(phases: list[dict[str, Any]], peak: str) -> str:
    from tabulate import tabulate  # noqa: PLC0415 - not needed for --json

    classes = list(dict.fromkeys(name for phase in phases for name in phase["bytes"]))
    rows = [[name, *(gib(p["bytes"].get(name)) if name in p["bytes"] else "" for p in phases)] for name in classes]
    rows.append(["total", *(gib(p["total"]) for p in phases)])
    headers = ["bytes per rank", *(f"{p['name']}{' (peak)' if p['name'] == peak else ''}" for p in phases)]
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=("left",))


def _cost_lines(data: dict[str, Any]) -> list[str]:
    work, time = data["flops"], data["time"]
    lines = []
    if work["model"]:
        lines.append(
            f"FLOPs per rank: {work['model'] / 1e12:.4g} T by the mathematics, {work['hardware'] / 1e12:.4g} T executed"
        )
    for name, value in data["communication"].items():
        lines.append(f"sent per rank and {'step' if 'step_seconds' in time else 'item'}: {name} {gib(value)}")
    seconds = time.get("step_seconds", time.get("seconds"))
    what = "time per step" if "step_seconds" in time else "time per item"
    if seconds is None:
        lines.append(f"{what}: not predicted: {time['reason']}")
    else:
        lines.append(
            f"{what}: {duration(seconds)} at {100 * time['efficiency']:.3g} % of the peak "
            f"({time['efficiency_source']}); {data['card_hours']:.4g} card hours in all on {data['cards']} cards"
        )
    return lines


def _suggestion_lines(data: dict[str, Any]) -> list[str]:
    found = data["suggestions"]
    if not found:
        return []
    lines = ["", "what to change first:" if data["fits"] is False else "what would lower the peak:"]
    for number, one in enumerate(found[:6], start=1):
        slower = one["slower_percent"]
        price = "time not predicted" if slower is None else f"{slower:+.3g} % time per sample"
        fits = "fits" if one["fits"] else "does not fit"
        lines.append(
            f"{number}. {one['change']}: {gib(one['peak'])} ({fits}), saves {gib(one['saved'])}, {price}; {one['note']}"
        )
    return lines
