"""``cogbench claims``: every figure in the README and the documents against records and published figures.

Markers: ``<!-- claim ID -->10.2 s<!-- /claim -->`` around one figure, and lines ``<!-- claims ID -->`` and
``<!-- /claims -->`` around a table. ``reports/claims.yaml`` says where each ID's value comes from (docs/design/015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bench.codes import MISMATCH, PASS
from bench.environment import code_root
from core.errors import UserError
from core.files import write_text
from reports import memory_summary, paired
from reports.claims_scan import Marked, marked, replaced, unbound
from reports.claims_source import Rendered, Sources
from reports.claims_stored import stored_table

LEDGER = Path("reports") / "claims.yaml"
STRICT = ("README.md",)
# What happened on a day stays as it was written.
HISTORY = ("docs/log.md",)
TABLES = {
    "paired": paired.claimed_table, "stored": stored_table, "published-plan": memory_summary.published_plan,
    "memory": memory_summary.summary,
}  # fmt: skip
GOOD = ("verified", "not measured")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One figure of one document. ``wanted``: what the source says where it differs from ``text``."""

    status: str
    document: str
    line: int
    id: str
    text: str
    source: str = ""
    why: str = ""
    wanted: str | None = None


def claims_command(
    documents: Sequence[Path], *, fix: bool, root: Path | None = None
) -> tuple[int, dict[str, Any], str]:
    """Exit code (1 unless every figure is verified or honestly not measured), data for --json, text."""
    root = root or code_root()
    ledger = read_ledger(root / LEDGER)
    sources = Sources(root)
    files = [Path(d).absolute() for d in documents] or default_documents(root)
    findings, fixed = [], []
    for file in files:
        found = check_document(file, root, ledger, sources)
        if fix and (changed := _fix(file, found)):
            fixed.append(f"{_name(file, root)}: {changed} re-rendered")
            found = check_document(file, root, ledger, sources)
        findings += [finding for finding, _ in found]
    used = {finding.id for finding in findings}
    findings += [
        Finding(status="unused", document=str(LEDGER), line=0, id=key, text="", why="no document has this claim")
        for key in ledger if not documents and key not in used
    ]  # fmt: skip
    bad = [f for f in findings if f.status not in GOOD]
    data = {"ok": not bad, "findings": [asdict(f) for f in findings], "fixed": fixed}
    return MISMATCH if bad else PASS, data, _text(findings, fixed)


def default_documents(root: Path) -> list[Path]:
    """README.md and every page below docs but the log."""
    readme = root / "README.md"
    if not readme.is_file():
        raise UserError(f"{readme}: no such file: run cogbench claims in a checkout, or name documents")
    pages = sorted((root / "docs").rglob("*.md"))
    return [readme, *(page for page in pages if page.relative_to(root).as_posix() not in HISTORY)]


def read_ledger(path: Path) -> dict[str, dict[str, Any]]:
    """Claims by ID, tables among them; UserError naming the file for one that can't be used."""
    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UserError(f"{path}: can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or set(data) != {"claims", "tables"}:
        raise UserError(f"{path}: need exactly the keys claims and tables")
    ledger: dict[str, dict[str, Any]] = {}
    for section in ("claims", "tables"):
        for key, claim in (data[section] or {}).items():
            if not isinstance(claim, dict) or key in ledger:
                raise UserError(f"{path}: {section}.{key}: need an object, and each ID once")
            ledger[str(key)] = claim | {"block": section == "tables"}
    return ledger


def check_document(
    file: Path, root: Path, ledger: dict[str, dict[str, Any]], sources: Sources
) -> list[tuple[Finding, Marked | None]]:
    """Every figure of a document with its verdict, and its place where it has markers."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: can't be read ({error}): name a Markdown file") from None
    name = _name(file, root)
    found: list[tuple[Finding, Marked | None]] = []
    for item in marked(text):
        found.append((_verdict(item, name, ledger.get(item.id), sources), item))
    why = "no markers around it" if name in STRICT else "no markers around it, and the page names no command"
    for figure in unbound(text, strict=name in STRICT):
        finding = Finding(status="unbound", document=name, line=figure.line, id="", text=figure.text, why=why)
        found.append((finding, None))
    return sorted(found, key=lambda pair: pair[0].line)


def _verdict(item: Marked, document: str, claim: dict[str, Any] | None, sources: Sources) -> Finding:
    place: dict[str, Any] = {"document": document, "line": item.line, "id": item.id, "text": item.text}
    if claim is None or claim["block"] != item.block:
        kind = "tables" if item.block else "claims"
        return Finding(status="unbound", **place, why=f"{LEDGER} has no {kind}.{item.id}")
    where = f"{LEDGER}: {item.id}"
    if item.block:
        if claim.get("render") not in TABLES:
            raise UserError(f"{where}: render is {claim.get('render')!r}, need one of {', '.join(TABLES)}")
        said = TABLES[claim["render"]](claim, sources)
    else:
        said = sources.rendered(claim, where)
    place["source"] = said.source
    if said.text is None and not said.refuted:
        return _without_source(said, claim, place)
    status, why = _judged(item.text, said)
    wanted = said.text if said.text != item.text else None
    return Finding(status=status, **place, why=why, wanted=wanted)


def _without_source(said: Rendered, claim: dict[str, Any], place: dict[str, Any]) -> Finding:
    missing = claim.get("missing")
    if missing is not None and place["text"] == missing:
        return Finding(status="not measured", **place, why=said.reason)
    return Finding(status="unverified", **place, why=said.reason, wanted=missing)


def _judged(text: str, said: Rendered) -> tuple[str, str]:
    """The verdict on a text that has a source."""
    if said.refuted:
        return "refuted", said.refuted
    if text == said.text:
        if said.reason:
            return "not measured", said.reason
        return ("stale", said.stale) if said.stale else ("verified", "")
    if text in said.older:
        return "stale", f"an earlier record said so, the newest says {said.text}"
    return "refuted", "the source says otherwise"


def _fix(file: Path, found: list[tuple[Finding, Marked | None]]) -> int:
    """Writes what the sources say into the document; how many places changed."""
    new = {item.start: f.wanted for f, item in found if item is not None and f.wanted is not None}
    if new:
        write_text(file, replaced(file.read_text(encoding="utf-8"), new))
    return len(new)


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def _text(findings: Sequence[Finding], fixed: Sequence[str]) -> str:
    lines = list(fixed)
    for finding in findings:
        shown = finding.text.strip().splitlines()[0] if finding.text.strip() else ""
        shown = shown if len(shown) <= 60 else shown[:59] + "…"
        label = f"{finding.id}: " if finding.id else ""
        tail = f" ({finding.why})" if finding.why else f" ({finding.source})" if finding.source else ""
        place = f"{finding.document}:{finding.line}" if finding.line else finding.document
        lines.append(f"{finding.status:12} {place}: {label}{shown}{tail}")
        if finding.wanted is not None and "\n" not in finding.wanted:
            lines.append(f"{'':12} -> {finding.wanted}")
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.status] = counts.get(finding.status, 0) + 1
    return "\n".join([*lines, ", ".join(f"{count} {status}" for status, count in counts.items()) or "no figures"])
