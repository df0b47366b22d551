"""Digests of single tensors, in a file beside the record: a model has thousands of them, and records are read in bulk.

``tensors.json``: ``{"schema_version": 1, "groups": {"parameters": [{"name", "dtype", "shape", "sha256"}, ...]}}``, in
the order in which the run reported them. The record names it by its sha256: ``digests["tensors.json"]``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import write_text

FILE_NAME = "tensors.json"
SCHEMA_VERSION = 1

Groups = dict[str, dict[str, dict[str, Any]]]


def groups_of(events: Sequence[dict]) -> Groups:
    """``group -> tensor name -> {dtype, shape, sha256}`` of the events; a later report of a tensor replaces it."""
    groups: Groups = {}
    for event in events:
        if event["type"] == "tensor":
            facts = {key: event[key] for key in ("dtype", "shape", "sha256")}
            groups.setdefault(event["group"], {})[event["name"]] = facts
    return groups


def write(run_dir: Path, groups: Groups) -> str:
    """Writes ``run_dir/tensors.json`` and returns the sha256 of its bytes."""
    listed = {group: [{"name": n, **facts} for n, facts in tensors.items()] for group, tensors in groups.items()}
    text = json.dumps({"schema_version": SCHEMA_VERSION, "groups": listed}, indent=0) + "\n"
    write_text(run_dir / FILE_NAME, text)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read(run_dir: Path, digest: str) -> Groups:
    """The tensors of a run; UserError if the file is gone, or is not the one that the record names by ``digest``."""
    path = run_dir / FILE_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({error.strerror or error}), but the record names it: copy it beside the record"
        ) from None
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise UserError(
            f"{path}: got sha256 {found[:12]}, the record names {digest[:12]}: it was changed since the run"
        )
    listed = json.loads(content)["groups"]
    return {group: {entry.pop("name"): entry for entry in entries} for group, entries in listed.items()}
