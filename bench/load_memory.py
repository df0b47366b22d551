"""``python -m bench.load_memory``: what loading and saving a sharded transformer costs in memory.

Writes fp32 shards of a preset's transformer with random numbers, tensor by tensor and never whole, loads them as bf16
with ``core.weights`` in a process of its own, saves them again, and deletes everything. Bound of the loading: the model
in the type it is kept in, the largest tensor in fp32, and ``ALLOWANCE``. Exit code 1 where it is exceeded.

The default is the 5B: 22 GB on the disk and 11 GB in memory; its marks are stored and shown again by ``--stored``.
``--preset tiny-1.5`` tries the command.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.child_env import full_environment
from bench.measured_table import finish
from core.checkpoint import write_checkpoint, write_config
from core.configs import TransformerConfig
from core.errors import UserError
from core.files import write_text
from core.params import ParamTable
from core.presets import PRESETS
from core.transformer.parameters import parameter_table

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "bench" / "load_memory.json"
DEFAULT = ("5b", "bf16")
STEM = "diffusion_pytorch_model"
ALLOWANCE = 64 * 2**20  # Python's and MindSpore's own, while they work, and a small model's pieces
SHARD = 2_000_000_000
SAVED = SHARD // 4  # bytes of a shard that saving holds
PATIENCE = 3600.0


def generate(config: TransformerConfig, folder: Path, shard: int = SHARD) -> int:
    """Writes ``config.json`` and fp32 shards of the transformer with random numbers; returns the bytes.

    A tensor is drawn once and given to all tensors of its shape: what is in it does not matter here.
    """
    table = parameter_table(config)
    rng, drawn = np.random.default_rng(0), {}

    def read(name: str) -> np.ndarray:
        shape = table[name].shape
        if shape not in drawn:
            drawn[shape] = rng.standard_normal(shape, np.float32)
        return drawn[shape]

    write_checkpoint(folder, STEM, table, read, dtype="fp32", max_shard_bytes=shard)
    write_config(folder / "config.json", "CogVideoXTransformer3DModel", config.to_dict())
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def bounds(table: ParamTable, itemsize: int) -> dict[str, int]:
    """Bytes of the model, of its largest tensor in fp32, and of what loading may hold above what was there before."""
    sizes = [math.prod(spec.shape) for spec in table.values()]
    model, largest = itemsize * sum(sizes), 4 * max(sizes)
    return {"parameters": sum(sizes), "model": model, "largest": largest, "bound": model + largest + ALLOWANCE}


def measure(folder: Path, dtype: str, save: Path | None, shard: int = SAVED) -> dict[str, Any]:
    """Loads (and saves) in a process of its own and returns its marks: ``empty``, ``loading``, ``loaded``, ``saving``.

    Raises:
        RuntimeError: it died; with the end of its messages.
    """
    job = {"folder": str(folder), "dtype": dtype, "save": None if save is None else str(save), "shard": shard}
    done = subprocess.run(
        [sys.executable, "-m", "bench.load_memory_child", json.dumps(job)], cwd=folder,
        env=full_environment({"kind": "load"}, ROOT), capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"the child ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(lines[-1])


def verdict(marks: dict[str, Any], limits: dict[str, int]) -> list[str]:
    """What exceeds its bound."""
    grown = marks["loading"] - marks["empty"]
    if grown <= limits["bound"]:
        return []
    return [f"loading held {grown / 2**30:.2f} GiB above the empty process, allowed are {limits['bound'] / 2**30:.2f}"]


def limits_of(stored: dict[str, Any]) -> dict[str, int]:
    """``bounds`` of a stored measurement."""
    parameters = parameter_table(PRESETS[stored["preset"]].transformer)
    return bounds(parameters, 4 if stored["dtype"] == "fp32" else 2)


def table(stored: dict[str, Any]) -> str:
    """Markdown."""
    gib, marks, limits = 2**30, stored["marks"], limits_of(stored)
    rows = [
        ("parameters", f"{limits['parameters'] / 1e9:.3f} billion"),
        ("fp32 shards on the disk", f"{stored['written'] / gib:.2f} GiB"),
        (f"model in {stored['dtype']}", f"{limits['model'] / gib:.2f} GiB"),
        ("largest tensor in fp32", f"{limits['largest'] / gib:.3f} GiB"),
        ("empty process", f"{marks['empty'] / gib:.2f} GiB"),
        ("peak while loading", f"{marks['loading'] / gib:.2f} GiB"),
        ("above the empty process", f"{(marks['loading'] - marks['empty']) / gib:.2f} GiB"),
        ("allowed", f"{limits['bound'] / gib:.2f} GiB"),
    ]
    if marks.get("saving"):
        rows.append(("peak while saving", f"{marks['saving'] / gib:.2f} GiB"))
    head = [f"| {stored['preset']}, fp32 to {stored['dtype']} | |", "|---|---:|"]
    return "\n".join(head + [f"| {name} | {value} |" for name, value in rows])


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.load_memory", description=__doc__)
    parser.add_argument("--preset", default=DEFAULT[0], choices=sorted(PRESETS))
    parser.add_argument(
        "--dtype", default=DEFAULT[1], choices=("bf16", "fp16", "fp32"), help="type the model is kept in"
    )
    parser.add_argument("--folder", type=Path, help="where the files lie while it runs (default: the system's own)")
    parser.add_argument("--stored", action="store_true", help="show the stored measurement, run nothing")
    parser.add_argument("--doc", type=Path, help="rewrite the table between the markers of this file")
    options = parser.parse_args(arguments)
    if options.stored:
        stored = json.loads(STORED.read_text(encoding="utf-8"))
    else:
        stored = _whole(options.preset, options.dtype, options.folder)
        if (options.preset, options.dtype) == DEFAULT:
            write_text(STORED, json.dumps(stored, indent=1) + "\n")
    return finish(table(stored), options.doc, "load-memory", verdict(stored["marks"], limits_of(stored)))


def _whole(preset: str, dtype: str, where: Path | None) -> dict[str, Any]:
    """Writes, loads, saves, deletes.

    Raises:
        UserError: the disk is too small.
    """
    limits = limits_of({"preset": preset, "dtype": dtype})
    with tempfile.TemporaryDirectory(dir=where) as name:
        need, free = 4 * limits["parameters"] + limits["model"], shutil.disk_usage(name).free
        if free < 1.1 * need:
            raise UserError(f"--folder: got {free / 1e9:.0f} GB free, need {1.1 * need / 1e9:.0f}; name another folder")
        folder = Path(name, "transformer")
        folder.mkdir()
        written = generate(PRESETS[preset].transformer, folder)
        marks = measure(folder, dtype, Path(name, "saved"))
    return {"preset": preset, "dtype": dtype, "written": written, "marks": marks}


if __name__ == "__main__":
    sys.exit(main())
