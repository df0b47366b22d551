"""Pairs with diffusers: a table of a report, and the table of the README that the claims ledger renders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.paired import HEADERS, row
from bench.paired_record import KIND
from bench.paired_session import SIDES
from bench.record import Record
from core.errors import UserError
from reports.claims_source import Rendered, Sources
from reports.collect import Run
from reports.render import Cell, Table, code_cell, command_text, missing_cell, number_cell, text_cell

NOTE = (
    "Ours and diffusers in turn, each in a process of its own, on the same weights and inputs. The ratio is the median "
    "of the pairs' ratios (below 1: ours takes less time); its interval holds the true median with at least 95 % for "
    "one session, and is the range of the sessions' medians where there are several. Memory is the process high-water "
    "mark."
)
_NUMBERS = (0, 1, 2, 4, 5, 6)


def sessions(runs: Iterable[Run]) -> dict[str, list[dict[str, Run]]]:
    """Pairs of records by the recipe's name: ``{name: [{"ours": run, "diffusers": run}, ...]}``, half ones left out."""
    found: dict[str, dict[Any, dict[str, Run]]] = {}
    for run in runs:
        name, _, side = run.name.rpartition(".")
        if run.kind == KIND and side in SIDES:
            found.setdefault(name, {}).setdefault(run.path.parent.parent, {})[side] = run
    pairs = {name: [s for s in by_folder.values() if set(s) == set(SIDES)] for name, by_folder in found.items()}
    return {name: complete for name, complete in pairs.items() if complete}


def paired_tables(runs: Iterable[Run]) -> tuple[Table, ...]:
    """One table with a row a recipe, none without pairs."""
    found = sessions(runs)
    if not found:
        return ()
    rows = tuple(_row(name, pairs) for name, pairs in found.items())
    return (Table("paired", "Beside diffusers", (*HEADERS, "sessions", "reproduce this"), rows, NOTE),)


def claimed_table(claim: dict[str, Any], sources: Sources) -> Rendered:
    """The README's table in Markdown from the records of the recipes in ``claim["recipes"]``, a folder.

    Every recipe of the folder has a row; one without records says so. Stale where a recipe has changed since.
    """
    folder = sources.root / str(claim.get("recipes"))
    recipes = sorted(folder.glob("*.yaml"))
    if not recipes:
        raise UserError(f"{folder}: no recipes there: reports/claims.yaml names this folder")
    known, rows, stale = sessions(sources.runs), [], []
    if not known:
        command = f"cogbench paired {claim['recipes']} --out reports/records/cpu"
        return Rendered(
            text=f"Not measured yet: no records (`{command}`).\n", source="reports/records", reason="no records"
        )
    for file in recipes:
        recipe = file.relative_to(sources.root).as_posix()
        name, digest = sources.name_of(recipe), sources.digest_of(recipe)
        pairs = known.get(name, [])
        if not pairs:
            cells = (f"`{recipe}`", *["not measured"] * (len(HEADERS) - 1))
        else:
            cells = (f"`{recipe}`", *row(name, [_records(pair) for pair in pairs])[1:])
            stale += [recipe for pair in pairs if any(run.data["recipe_digest"] != digest for run in pair.values())]
        rows.append("| " + " | ".join(cells) + " |")
    head = ["| " + " | ".join(HEADERS) + " |", "|---|" + "---:|" * (len(HEADERS) - 1)]
    why = f"changed since its records: {', '.join(dict.fromkeys(stale))}" if stale else ""
    return Rendered(text="\n".join([*head, *rows]) + "\n", stale=why, source="reports/records")


def _records(pair: dict[str, Run]) -> dict[str, Record]:
    return {side: Record.model_validate(run.data) for side, run in pair.items()}


def _row(name: str, pairs: list[dict[str, Run]]) -> tuple[Cell, ...]:
    texts = row(name, [_records(pair) for pair in pairs])
    ours = pairs[-1]["ours"]
    command = command_text(ours.data.get("command"))
    reproduce = missing_cell("the record holds no command", applies=False) if command is None else code_cell(command)
    return (text_cell(name), *(_cell(text, pairs, i) for i, text in enumerate(texts[1:])),
            number_cell(len(pairs)), reproduce)  # fmt: skip


def _cell(text: str, pairs: list[dict[str, Run]], column: int) -> Cell:
    """A number that sorts by its value in SI units; text where it has none."""
    if text in ("failed", "-"):
        reason = next((r.data.get("reason") for p in pairs for r in p.values() if r.data.get("reason")), "not recorded")
        return missing_cell(str(reason))
    return Cell(text, _sort(pairs, column), "number") if column in _NUMBERS else text_cell(text)


def _sort(pairs: list[dict[str, Run]], column: int) -> float | None:
    side, field = {
        0: ("ours", "summary.step_seconds_median"), 1: ("diffusers", "summary.step_seconds_median"),
        2: ("ours", "metrics.ratio_median.value"), 4: ("ours", "memory.process_peak_bytes"),
        5: ("diffusers", "memory.process_peak_bytes"), 6: ("ours", "metrics.output_error.value"),
    }[column]  # fmt: skip
    return pairs[-1][side].number(field)
