"""The environment variables of a child process: which ones the runner sets or removes, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import native

# Kinds that spend their time in the VAE's convolutions.
CONVOLUTION_KINDS = frozenset({"encode-video", "decode-latents", "train-vae"})
_LOG_LEVELS = {"debug": "0", "info": "1", "warning": "2", "error": "3", "critical": "4"}


def child_environment(recipe: Mapping[str, Any]) -> dict[str, str | None]:
    """Variables the recipe (effective plain data) decides; None removes a variable the user has set.

    ``ONEDNN_MAX_CPU_ISA=AVX2`` is for processes that run the VAE without our compiled kernels (no compiler, or
    ``runtime.kernels: operators``): with AVX-512 MindSpore's own convolutions reach oneDNN's reference kernel, so
    ``core.ops`` unfolds them there; with AVX2 they are native and faster, but matrix products take longer. Measured
    with recipes/tiny/generate.yaml at 128x192x17: decoding 12.6 -> 3.5 s, a denoising step 72 -> 81 ms. Our own
    convolution needs no limit. To know which it will be, the library is built here unless it has been before
    (docs/design/002, 006).
    """
    runtime = recipe.get("runtime") or {}
    variables: dict[str, str | None] = {
        "ONEDNN_MAX_CPU_ISA": "AVX2" if _wants_avx2(recipe, runtime) else None,
        "PYTHONHASHSEED": str(int(recipe.get("seed") or 0) % 2**32),
        # Output of a process that dies must be in the log, with the Python line a fatal signal came from.
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    level = runtime.get("log_level")
    if level is not None:
        variables["GLOG_v"] = _LOG_LEVELS.get(str(level).lower(), str(level))
    if runtime.get("device") == "ascend" and runtime.get("deterministic", True):
        variables["HCCL_DETERMINISTIC"] = "true"
    return variables


def _wants_avx2(recipe: Mapping[str, Any], runtime: Mapping[str, Any]) -> bool:
    choice = runtime.get("convolution_isa") or "auto"
    if choice != "auto":
        return choice == "avx2"
    if runtime.get("device", "cpu") != "cpu":
        return False
    if recipe.get("kind") == "generate":
        convolves = (recipe.get("save") or {}).get("decode") is not False
    else:
        convolves = recipe.get("kind") in CONVOLUTION_KINDS
    return convolves and (runtime.get("kernels") == "operators" or native.library().path is None)


def full_environment(recipe: Mapping[str, Any], code_root: Path) -> dict[str, str]:
    """This process's environment with the recipe's variables applied and the code importable from anywhere.

    PYTHONSAFEPATH keeps a folder called ``core`` or ``bench`` in the user's directory from shadowing ours.
    """
    env = dict(os.environ)
    for name, value in child_environment(recipe).items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    env["PYTHONSAFEPATH"] = "1"
    paths = [str(code_root), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return env
