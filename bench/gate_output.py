"""A judgement as a table for people, as plain data for scripts, and as JUnit XML for CI systems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.readings import COUNTED, PLANNED
from bench.render import duration, memory
from bench.verdict import EXIT_CODES, Check, Judgement, Verdict
from core.files import atomic_path

_HEADERS = ("check", "baseline", "now", "change", "interval", "smallest visible", "verdict")
_NUMBERS = ("time", "bytes", "rss")
_MOVED = 8


def data_of(judgement: Judgement) -> dict[str, Any]:
    """Everything, in JSON's types; infinite ends of an interval become null."""
    plain = {key: value for key, value in vars(judgement).items() if key != "checks"}
    checks = [{key: _json(value) for key, value in vars(check).items()} for check in judgement.checks]
    return plain | {"verdict": str(judgement.verdict), "exit_code": EXIT_CODES[judgement.verdict], "checks": checks}


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, Verdict) else value


def text_of(judgement: Judgement, title: str, *, every: bool = False) -> str:
    """The table: all times and memory, every finding, and the equal rest as counts (``every``: all of it)."""
    from tabulate import tabulate  # noqa: PLC0415 - not needed by `cogbench check`

    rows = [_row(check) for check in judgement.checks if every or _worth_a_row(check)]
    runs = f"{judgement.new_runs} run{'s' if judgement.new_runs != 1 else ''} against {judgement.null_runs} null runs"
    lines = [f"{title}: {runs}", ""]
    if rows:
        lines += [tabulate(rows, headers=_HEADERS, tablefmt="simple", disable_numparse=True), ""]
    if equal := _equal(judgement.checks):
        lines.append(f"equal: {equal}")
    if moved := moved_memory(judgement.checks):
        lines += ["memory that moved most:", *moved]
    if classes := class_rows(judgement.checks):
        headers = ("memory by class", "planned", "baseline", "now", "moved", "now less planned")
        lines += [tabulate(classes, headers=headers, tablefmt="simple", disable_numparse=True), ""]
    if judgement.interval_checks:
        share = f"{judgement.interval_checks} interval checks share a false-alarm chance of {100 * judgement.alpha:g} %"
        lines.append(f"{share}; smallest visible: noticed in 80 % of cases")
    return "\n".join([*lines, f"{judgement.verdict}: {judgement.reason}"])


_NO_BOUND = 100  # an interval that reaches so many times the baseline notices nothing worth a number


def _worth_a_row(check: Check) -> bool:
    if check.verdict is Verdict.SHOWN:
        return check.family in _NUMBERS and check.rule != "none"
    return check.verdict is not Verdict.PASS or check.family in _NUMBERS


def _row(check: Check) -> tuple[str, ...]:
    ends = (
        "" if check.low is None or check.high is None else f"{_value(check.low, check)} .. {_value(check.high, check)}"
    )
    smallest = "" if check.detectable is None else f"+{_value(check.detectable, check)}"
    if ends and check.baseline and check.high > _NO_BOUND * check.baseline:
        ends, smallest = f"more than {_NO_BOUND}-fold: runs differ too much", "nothing"
    verdict = str(check.verdict) if check.verdict is not Verdict.SHOWN else "-"
    verdict += f" ({check.reason})" if check.reason else ""
    return (
        check.name,
        _value(check.baseline, check),
        _value(check.current, check),
        _change(check),
        ends,
        smallest,
        verdict,
    )


def _value(value: Any, check: Check) -> str:
    if value is None:
        return "-"
    if isinstance(value, str) or not check.unit:
        return str(value)
    if check.unit == "s":
        return duration(float(value))
    if check.unit == "B":
        return f"{value:,.0f} B" if abs(value) < 2**20 else memory(value)
    return f"{value:.6g} {check.unit}".strip()


def _change(check: Check) -> str:
    change = _moved_by(check)
    if change is None or not check.baseline:
        return ""
    percent = 100 * change / check.baseline
    return f"{change:+,.0f} B ({percent:+.2f} %)" if check.unit == "B" else f"{percent:+.1f} %"


def _moved_by(check: Check) -> float | None:
    numbers = isinstance(check.baseline, int | float) and isinstance(check.current, int | float)
    return check.current - check.baseline if numbers and check.unit in ("B", "s") else None


def _equal(checks: Sequence[Check]) -> str:
    counted: dict[str, int] = {}
    for check in checks:
        if check.verdict is Verdict.PASS and check.family not in _NUMBERS:
            counted[check.family] = counted.get(check.family, 0) + 1
    return ", ".join(f"{number} {family}" for family, number in counted.items())


def moved_memory(checks: Sequence[Check]) -> list[str]:
    """Memory readings that changed by more than chance, the largest first: which phase, class and rank it was."""
    changed = [check for check in checks if check.unit == "B" and check.verdict is not Verdict.PASS]
    found = [(change, check) for check in changed if (change := _moved_by(check))]
    found.sort(key=lambda pair: -abs(pair[0]))
    return [f"  {change:+15,.0f} B  {check.name}" for change, check in found[:_MOVED]]


def class_rows(checks: Sequence[Check]) -> list[tuple[str, ...]]:
    """Every class of memory that the runs counted: as planned, in the baseline, now. What moved stands out, and whether
    the formulas moved with it."""
    by_name = {check.name: check for check in checks}
    rows = []
    for check in checks:
        label, mark, name = check.name.rpartition(COUNTED)
        if not mark:
            continue
        plan = by_name.get(label + PLANNED + name)
        planned = None if plan is None or not isinstance(plan.current, int | float) else plan.current
        moved = _moved_by(check)
        apart = check.current - planned if planned is not None and isinstance(check.current, int | float) else None
        rows.append(
            (
                label + name, "-" if planned is None else _value(planned, check), _value(check.baseline, check),
                _value(check.current, check), *("-" if x is None else f"{x:+,.0f} B" for x in (moved, apart)),
            )
        )  # fmt: skip
    return rows


def write_junit(path: Path, judgement: Judgement, name: str) -> None:
    """One test case a check: failure for a finding, error for what could not be judged, skipped for what was not."""
    cases = [_case(check, name) for check in judgement.checks]
    cases.append(_case_of("verdict", name, judgement.verdict, judgement.reason))
    suite = ElementTree.Element("testsuite", name=f"cogbench gate {name}", tests=str(len(cases)))
    for kind in ("failure", "error", "skipped"):
        total = sum(case.find(kind) is not None for case in cases)
        suite.set({"failure": "failures", "error": "errors", "skipped": "skipped"}[kind], str(total))
    suite.extend(cases)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    tree = ElementTree.ElementTree(root)
    ElementTree.indent(tree)
    with atomic_path(path) as temporary:
        tree.write(temporary, encoding="utf-8", xml_declaration=True)


def _case(check: Check, name: str) -> ElementTree.Element:
    values = f"baseline {_value(check.baseline, check)}, now {_value(check.current, check)}"
    return _case_of(check.name, f"{name}.{check.family}", check.verdict, f"{check.reason or ''} ({values})".strip())


def _case_of(name: str, group: str, verdict: Verdict, text: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase", name=_printable(name), classname=_printable(group))
    kinds = {Verdict.PASS: None, Verdict.SHOWN: "skipped"}
    kinds |= dict.fromkeys((Verdict.REGRESSION, Verdict.IMPROVED, Verdict.RECIPE_MISMATCH), "failure")
    kind = kinds.get(verdict, "error")
    if kind:
        ElementTree.SubElement(case, kind, message=_printable(f"{verdict}: {text}"))
    return case


def _printable(text: str) -> str:
    # XML 1.0 has no control characters; one in a name or a message would make the whole file unreadable.
    return "".join(c if c.isprintable() else " " for c in text)
