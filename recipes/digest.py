"""The identity of an experiment: a hash of the effective recipe."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Labels and limits of a run, not what is computed: two runs that differ only here are the same experiment.
_LABELS = ("name", "description", "extends", "output")
_LIMITS = ("timeout_s", "repeats", "measure_peak")
# Where a training run begins: a resumed one has the bits of one that was never interrupted.
_BEGINNING = ("resume",)
# Younger than accepted baselines, which their defaults must not change.
_YOUNGER = (
    ("vae", "parallel", "auto"), ("data", "memory_mib", 0), ("train", "optimizer_in_backward", False),
    ("train", "feed_forward_chunk", None), ("sampling", "feed_forward_chunk", None),
)  # fmt: skip


def _essence(data: dict[str, Any], *, keep_name: bool = False) -> dict[str, Any]:
    dropped = tuple(key for key in _LABELS if not (keep_name and key == "name"))
    kept = {key: value for key, value in data.items() if key not in dropped}
    for section, ignored in (("runtime", _LIMITS), ("train", _BEGINNING)):
        if isinstance(kept.get(section), dict):
            kept[section] = {key: value for key, value in kept[section].items() if key not in ignored}
    for section, key, default in _YOUNGER:
        given = kept.get(section)
        if isinstance(given, dict) and given.get(key) == default:
            kept[section] = {name: value for name, value in given.items() if name != key}
    if isinstance(kept.get("stages"), list):
        # A stage's name is referred to by "@name", so it is part of the experiment.
        kept["stages"] = [_essence(stage, keep_name=True) for stage in kept["stages"]]
    return kept


def digest(data: dict[str, Any]) -> str:
    """sha256 (hex) of the effective recipe as canonical JSON.

    Without name, description, output folder, timeout, number of repeats, ``measure_peak`` and ``train.resume``;
    defaults are included (but those of ``_YOUNGER``), so spelling a default changes nothing. Stage names of a pipeline
    count.
    """
    text = json.dumps(_essence(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
