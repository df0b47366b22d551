"""Where a claim's value comes from: a field of the newest record of a recipe, or a cell of the published figures."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.recipe_access import open_recipe
from core.errors import UserError
from reports.collect import Run, collect
from reports.published import COLUMNS, PUBLISHED, Figure, read_published
from reports.render import GIB

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_SCALES = {"GiB": GIB, "ms": 1e-3, "%": 1e-2}


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What a source says: the text to print and the value in it; ``reason``: why there is no value.

    ``text`` is then None, or for a table the sentence in its place.

    ``stale``: why the source itself is out of date. ``older``: texts that earlier records would have given.
    """

    text: str | None
    value: Any = None
    reason: str = ""
    stale: str = ""
    refuted: str = ""
    older: tuple[str, ...] = ()
    source: str = ""


class Sources:
    """Records below ``root``/reports/records and the published figures, read once."""

    def __init__(self, root: Path, published: Path = PUBLISHED):
        self.root, self._published = root, published

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Every readable record that is kept in the repository, by start."""
        folder = self.root / "reports" / "records"
        if not folder.is_dir() or not any(folder.rglob("record.json")):
            return ()
        return collect([folder]).runs

    @cached_property
    def figures(self) -> tuple[Figure, ...]:
        """The published figures."""
        return read_published(self._published)

    def digest_of(self, recipe: str) -> str:
        """The digest a recipe of the repository has now; UserError where there is none."""
        return open_recipe(self.root / recipe, []).digest

    def name_of(self, recipe: str) -> str:
        """The recipe's name."""
        return open_recipe(self.root / recipe, []).data["name"]

    def rendered(self, claim: dict[str, Any], where: str) -> Rendered:
        """The text of a claim of claims.yaml.

        Raises:
            UserError: the claim itself is wrong (names what is missing in it).
        """
        if ("published" in claim) == ("record" in claim):
            raise UserError(f"{where}: needs published or record, one of the two")
        if not isinstance(claim.get("text"), str) or "{" not in claim["text"]:
            raise UserError(f"{where}: needs text with a place for the value, such as '{{:.2f}} s'")
        return self._of_published(claim, where) if "published" in claim else self._of_record(claim, where)

    def _of_published(self, claim: dict[str, Any], where: str) -> Rendered:
        wanted = claim["published"]
        if wanted == "count":
            return self._checked(claim, where, len(self.figures), source="reports/published.csv")
        if unknown := [key for key in wanted if key not in COLUMNS]:
            raise UserError(f"{where}: published has no column {', '.join(unknown)}")
        rows = [f for f in self.figures if all(f.cells[key] == str(value) for key, value in wanted.items())]
        if len(rows) != 1:
            reason = f"{len(rows)} published rows match, need exactly one"
            return Rendered(text=None, reason=reason, source="reports/published.csv")
        cell = rows[0].cells.get(claim.get("field", ""), "")
        source = f"reports/published.csv:{rows[0].line} {claim.get('field')}"
        if not cell.strip():
            return Rendered(text=None, reason="the source does not state it", source=source)
        return self._checked(claim, where, cell, source=source, number=rows[0].number(claim["field"]))

    def _of_record(self, claim: dict[str, Any], where: str) -> Rendered:
        recipe, side = claim["record"], claim.get("side")
        name = self.name_of(recipe) + (f".{side}" if side else "")
        runs = sorted((r for r in self.runs if r.name == name), key=lambda r: r.data["started"])
        if not runs:
            return Rendered(text=None, reason=f"no record of {recipe} in reports/records", source=recipe)
        newest = runs[-1]
        source = f"{newest.path.relative_to(self.root)} {claim.get('field')}"
        if newest.status not in ("ok", "unsteady"):
            return Rendered(text=None, refuted=f"the newest record is {newest.status}", source=source)
        value = newest.number(claim.get("field", ""))
        if value is None:
            return Rendered(text=None, reason=newest.null_reason(claim.get("field", "")), source=source)
        older = [v for r in runs[:-1] if (v := r.number(claim["field"])) is not None]
        stale = "" if newest.data["recipe_digest"] == self.digest_of(recipe) else f"{recipe} has changed since"
        return self._checked(claim, where, value, source=source, stale=stale, older=older)

    def _checked(
        self, claim: dict[str, Any], where: str, value: Any, *, source: str, stale: str = "", older: Any = (),
        number: float | None = None,
    ) -> Rendered:  # fmt: skip
        scale = _SCALES.get(claim.get("scale", ""), 1.0)

        def text_of(raw: Any) -> str:
            shown = raw if isinstance(raw, str) or scale == 1.0 else raw / scale
            try:
                return claim["text"].format(shown)
            except (ValueError, IndexError, KeyError) as error:
                raise UserError(f"{where}: text {claim['text']!r} can't show {shown!r}: {error}") from None

        refuted = ""
        if "holds" in claim:
            measured = number if isinstance(value, str) else value
            refuted = _violated(str(claim["holds"]), measured, scale, where)
        return Rendered(
            text=text_of(value), value=value, stale=stale, refuted=refuted, source=source,
            older=tuple(text_of(raw) for raw in older),
        )  # fmt: skip


def _violated(condition: str, value: float | None, scale: float, where: str) -> str:
    sign = next((sign for sign in _HOLDS if condition.startswith(sign)), None)
    try:
        bound = float(condition.removeprefix(sign or ""))
    except ValueError:
        sign = None
    if sign is None:
        raise UserError(f"{where}: holds is {condition!r}, need a comparison such as '<= 5'")
    if value is None or not _HOLDS[sign](value / scale, bound):
        return f"the claim needs {condition}, the source says {value if value is None else value / scale:g}"
    return ""
