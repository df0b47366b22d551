"""The train task in a child process that kills itself with SIGKILL at a chosen point, as a power cut would."""

from __future__ import annotations

import os
import signal
from typing import Any
from unittest import mock

from bench.context import RunContext
from bench.tasks import train
from recipes.load import from_dict


def run(data: dict[str, Any], ctx: RunContext) -> None:
    """``data``: ``recipe`` and ``kill``, None or ``{"at": point, "step": n}``: steps done when it happens."""
    if data["kill"]:
        _arm(data["kill"]["at"], data["kill"]["step"], ctx)
    train.run(from_dict(data["recipe"]), ctx)


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(point: str, done: int, ctx: RunContext) -> None:
    from core.train import checkpoint

    step, save = ctx.step, checkpoint.save

    def watched_step(index: int, *args: Any, **options: Any) -> None:
        step(index, *args, **options)
        if index + 1 == done:
            _die()

    def watched_save(out: Any, state: Any, exports: Any, **options: Any) -> Any:
        if state.step == done:
            # In the middle: weights are written, their state is not; or all is there but not yet under its name.
            setattr(checkpoint, {"in state": "_write_state", "before rename": "_flush"}.get(point, "_prune"), _die)
            if point == "before latest":
                checkpoint.write_text = lambda path, text: _die()
        return save(out, state, exports, **options)

    if point == "after step":
        mock.patch.object(ctx, "step", watched_step).start()
    else:
        checkpoint.save = watched_save
