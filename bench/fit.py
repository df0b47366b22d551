"""How a measured number grows with an axis: three simple laws, judged by predicting each point from the others.

``linear`` a + b x, ``quadratic`` a + b x + c x^2, ``power`` a x^b (fitted in logarithms). The error of a law is what
it says about a value of the axis that it was not fitted on (leave-one-out); the law with the least error is taken.
Beyond the measured range by more than half its width nothing is predicted: no measurement speaks for it there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from core.errors import UserError

MIN_POINTS = 4
REACH = 0.5
# A law that misses points it has not seen by more than this predicts nothing.
MOST_ERROR = 0.2
_MODELS = ("linear", "quadratic", "power")
_PARAMETERS = {"linear": 2, "quadratic": 3, "power": 2}
# A law with more parameters must be better by this factor, or the simpler one is taken.
_PREFER_SIMPLE = 0.8


@dataclass(frozen=True)
class Law:
    """A fitted law: ``coefficients`` in the order of the module's text."""

    model: str
    coefficients: tuple[float, ...]

    def __call__(self, x: float) -> float:
        if self.model == "power":
            factor, exponent = self.coefficients
            return factor * x**exponent
        return sum(c * x**power for power, c in enumerate(self.coefficients))

    def __str__(self) -> str:
        if self.model == "power":
            return f"{self.coefficients[0]:.4g} x^{self.coefficients[1]:.3g}"
        terms = ("", " x", " x^2")
        return " + ".join(f"{c:.4g}{term}" for c, term in zip(self.coefficients, terms, strict=False))


@dataclass(frozen=True)
class Fit:
    """A law for ``of`` against ``axis`` where the other axes have the values ``where``.

    ``error``: root mean square of the relative leave-one-out errors, ``worst``: the largest.
    """

    axis: str
    of: str
    where: dict[str, Any]
    law: Law
    points: tuple[tuple[float, float], ...]
    error: float
    worst: float

    def predict(self, x: float) -> float:
        """The law at ``x``; UserError far outside what was measured."""
        low, high = self.points[0][0], self.points[-1][0]
        reach = REACH * (high - low)
        if not low - reach <= x <= high + reach:
            raise UserError(
                f"{self.axis}={x:g}: measured from {low:g} to {high:g}, predicted to at most {low - reach:g} to "
                f"{high + reach:g}: measure nearer to it"
            )
        if self.error > MOST_ERROR:
            raise UserError(
                f"{self.axis}={x:g}: the {self.law.model} law misses points it was not fitted on by "
                f"{100 * self.error:.0f} % (at most {100 * MOST_ERROR:.0f} %): repeat on a quiet machine"
            )
        value = self.law(x)
        if not value > 0:
            raise UserError(f"{self.axis}={x:g}: the {self.law.model} law gives {value:.3g}: measure nearer to it")
        return value

    def data(self) -> dict[str, Any]:
        """The fit as JSON data."""
        return {
            "axis": self.axis, "of": self.of, "where": self.where, "model": self.law.model,
            "coefficients": list(self.law.coefficients), "formula": str(self.law), "points": len(self.points),
            "low": self.points[0][0], "high": self.points[-1][0], "leave_one_out_error": self.error,
            "leave_one_out_worst": self.worst,
        }  # fmt: skip


def told(fit: dict[str, Any], unit: str) -> str:
    """One line of a fit's data: the law, its range and its leave-one-out error."""
    where = "".join(f", {key}={value}" for key, value in fit["where"].items())
    error, worst = (f"{100 * fit[key]:.1f} %" for key in ("leave_one_out_error", "leave_one_out_worst"))
    span = f"{fit['points']} values from {fit['low']:g} to {fit['high']:g}"
    law = f"{fit['of']} [{unit}] = {fit['formula']}, x = {fit['axis']}{where}"
    return f"fit: {law}; {span}; leave-one-out error {error} (worst {worst})"


def fit(points: Sequence[tuple[float, float]], model: str) -> Law:
    """Least squares of relative errors, so that a small value counts as much as a large one."""
    import numpy as np  # noqa: PLC0415 - only a sweep that has finished needs it

    x, y = (np.array(column, np.float64) for column in zip(*points, strict=True))
    if model == "power":
        slope, start = np.polyfit(np.log(x), np.log(y), 1)
        return Law(model, (float(math.exp(start)), float(slope)))
    powers = np.vander(x, _PARAMETERS[model], increasing=True)
    found, *_ = np.linalg.lstsq(powers / y[:, None], np.ones_like(y), rcond=None)
    return Law(model, tuple(float(c) for c in found))


def leave_one_out(points: Sequence[tuple[float, float]], model: str) -> tuple[float, float]:
    """(root mean square, largest) relative error of each point as the law of all others predicts it."""
    errors = [fit([*points[:i], *points[i + 1 :]], model)(x) / y - 1 for i, (x, y) in enumerate(points)]
    return math.sqrt(sum(e * e for e in errors) / len(errors)), max(map(abs, errors))


def best(points: Sequence[tuple[float, float]]) -> tuple[Law, float, float] | None:
    """The law with the least leave-one-out error, that error and the worst; None with too few points.

    ``points``: (x, y) with different x, all positive.
    """
    usable = sorted((x, y) for x, y in points if x > 0 and y > 0)
    if len(usable) < MIN_POINTS or len({x for x, _ in usable}) < len(usable):
        return None
    chosen = None
    for model in sorted(_MODELS, key=_PARAMETERS.__getitem__):
        error, worst = leave_one_out(usable, model)
        more = chosen is not None and _PARAMETERS[model] > _PARAMETERS[chosen[0]]
        if chosen is None or error < chosen[1] * (_PREFER_SIMPLE if more else 1.0):
            chosen = (model, error, worst)
    assert chosen is not None
    return fit(usable, chosen[0]), chosen[1], chosen[2]


def fits_of(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[Fit]:
    """Fits of every numeric axis for each combination of the others, over the medians of the rows that ended ok."""
    good = [row for row in rows if row["status"] == "ok"]
    axes = list(good[0]["values"]) if good else []
    found = []
    for axis in (a for a in axes if all(_is_number(row["values"][a]) for row in good)):
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in good:
            groups.setdefault(repr(_others(row, axis)), []).append(row)
        for group in groups.values():
            for name in names:
                points = _medians(group, axis, lambda row, name=name: row[name])
                if (law := best(points)) is not None:
                    found.append(Fit(axis, name, _others(group[0], axis), law[0], tuple(sorted(points)), *law[1:]))
    return found


def _others(row: dict[str, Any], axis: str) -> dict[str, Any]:
    return {key: value for key, value in row["values"].items() if key != axis}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _medians(rows: Sequence[dict[str, Any]], axis: str, read: Callable) -> list[tuple[float, float]]:
    by_value: dict[float, list[float]] = {}
    for row in rows:
        if read(row) is not None:
            by_value.setdefault(float(row["values"][axis]), []).append(float(read(row)))
    return [(x, median(values)) for x, values in by_value.items()]


def predicted(fits: Sequence[Fit], axis: str, value: float) -> list[dict[str, Any]]:
    """What each fit of ``axis`` says at ``value``, or why it says nothing."""
    mine = [found for found in fits if found.axis == axis]
    if not mine:
        why = f"{axis}={value:g}: not predicted: no fit, which needs {MIN_POINTS} values of the axis that ended ok"
        return [{"axis": axis, "x": value, "of": None, "value": None, "reason": why, "text": why}]
    answers = []
    for found in mine:
        answer: dict[str, Any] = {"axis": axis, "x": value, "of": found.of, "where": found.where}
        try:
            y = found.predict(value)
            text = f"predicted {found.of} at {axis}={value:g}: {y:.4g} (leave-one-out error {100 * found.error:.1f} %)"
            answers.append(answer | {"value": y, "reason": None, "text": text})
        except UserError as error:
            text = f"{found.of}: not predicted: {error}"
            answers.append(answer | {"value": None, "reason": str(error), "text": text})
    return answers
