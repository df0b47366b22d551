"""One module per recipe kind, each with ``run(recipe, ctx)``; imported only in the child process."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from core.errors import UserError


def task_for(kind: str, module: str | None = None) -> Callable:
    """``run`` of the kind's module (``encode-text``: ``bench.tasks.encode_text``); ``module`` replaces it in tests."""
    name = module or f"{__name__}.{kind.replace('-', '_')}"
    try:
        return importlib.import_module(name).run
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"kind {kind!r} has no task in this version (no module {name}): update cogbench") from None
