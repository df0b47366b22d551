"""One way's side of ``bench.blocks``: ``python -m bench.blocks_child WAY BLOCKS ROUNDS``."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import mindspore as ms
import numpy as np

from bench.context import synchronize
from core import ops
from core.presets import PRESETS
from core.transformer import layers
from core.transformer.model import CogVideoXTransformer3DModel

TOKENS, TEXT, WIDTH = 768, 64, 512


def _network(p, hidden, encoder, temb, cos, sin, *, keys, names, num_heads, eps):
    """All blocks in one function; ``keys[block][i]`` is where parameter ``names[i]`` of a block is in ``p``."""
    for block_keys in keys:
        block_p = {}
        for i in range(len(names)):
            block_p[names[i]] = p[block_keys[i]]
        hidden, encoder = layers.block(block_p, hidden, encoder, temb, cos, sin, num_heads=num_heads, eps=eps)
    return hidden, encoder


def _forward(way: str, model: Any) -> Callable:
    config = model.config
    sizes = {"num_heads": config.num_attention_heads, "eps": config.norm_eps}
    prefixes = [f"transformer_blocks.{i}" for i in range(config.num_layers)]
    names = tuple(model.block(prefixes[0]))
    if way == "network":
        keys = tuple(tuple(f"{prefix}.{name}" for name in names) for prefix in prefixes)
        whole = ops.compiled(_network)
        return lambda *tensors: whole(
            model.block(*prefixes, keep_prefix=True), *tensors, keys=keys, names=names, **sizes
        )[0]
    one = ops.compiled(layers.block)
    parameters = dict(model.parameters_and_names())

    def forward(hidden, encoder, *others):
        for prefix in prefixes:
            held = model.block(prefix)
            if way == "parameters":
                held = {name: parameters[f"{prefix}.{name}"] for name in names}
            hidden, encoder = one(held, hidden, encoder, *others, **sizes)
        return hidden

    return forward


def main(way: str, blocks: int, rounds: int) -> None:
    """Prints one JSON line."""
    ops.configure(mode="pynative" if way == "pynative" else "graph")
    config = replace(
        PRESETS["tiny-1.5"].transformer, num_layers=blocks, num_attention_heads=8, attention_head_dim=WIDTH // 8
    )
    model = CogVideoXTransformer3DModel(config).initialize(0)
    rng = np.random.default_rng(0)
    shapes = [(1, TOKENS, WIDTH), (1, TEXT, WIDTH), (1, config.time_embed_dim), *[(TOKENS + TEXT, WIDTH // 8)] * 2]
    tensors = [ms.Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    forward = _forward(way, model)
    trained = [q for q in model.trainable_params() if q.name.startswith("transformer_blocks.")]
    step = ops.value_and_gradients(lambda *v: (forward(*v) ** 2).mean(), trained)

    def seconds(function: Callable) -> float:
        start = time.perf_counter()
        function(*tensors)
        synchronize()
        return time.perf_counter() - start

    row: dict[str, Any] = {"way": way, "first_forward": seconds(forward)}
    row["forward"] = median(seconds(forward) for _ in range(rounds))
    row["first_step"] = seconds(step)
    row["step"] = median(seconds(step) for _ in range(rounds))
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    assert peak is not None
    print(json.dumps(row | {"peak_bytes": int(peak[1]) * 1024}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
