"""Writes tests/golden from the reference: ``python -m tests.parity.make_golden`` in the parity environment.

``parameter_shapes.txt``: every parameter of every published size, built on torch's meta device (no memory).
``*.npz``: small random-weight cases with the reference's outputs, so that the default tests check parity without it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel

from core.presets import PRESETS
from core.text.parameters import ALIASES
from tests.parity import cases_came, cases_lora, cases_schedulers, cases_text, cases_transformer, cases_vae

FOLDER = Path(__file__).parents[1] / "golden"
_BLOCK = re.compile(r"^(transformer_blocks|encoder\.block)\.(\d+)\.")


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict, tied names left out."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in ALIASES}


def reference_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Published sizes -> names -> shapes."""
    table = {}
    with torch.device("meta"):
        for name, preset in PRESETS.items():
            if preset.published:
                model = CogVideoXTransformer3DModel(**preset.transformer.to_dict())
                table[f"transformer {name}"] = shapes_of(model)
        table["vae"] = shapes_of(AutoencoderKLCogVideoX(**PRESETS["5b"].vae.to_dict()))
        config = transformers.T5Config(**PRESETS["5b"].text.to_dict())
        table["text_encoder t5-v1_1-xxl"] = shapes_of(transformers.T5EncoderModel(config))
    return table


def compact(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Lines ``name shape``; blocks that repeat from 0 to n-1 are one line with ``*`` and ``xN``."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    for name, shape in shapes.items():
        match = _BLOCK.match(name)
        groups[_BLOCK.sub(r"\1.*.", name), shape].append(int(match[2]) if match else -1)
    lines = []
    for (name, shape), indices in groups.items():
        size = "x".join(map(str, shape)) or "scalar"
        if indices == [-1]:
            lines.append(f"{name} {size}")
        elif indices == list(range(len(indices))):
            lines.append(f"{name} {size} *{len(indices)}")
        else:
            lines.extend(f"{name.replace('*', str(i))} {size}" for i in indices)
    return lines


def main() -> None:
    """Writes every file."""
    FOLDER.mkdir(exist_ok=True)
    lines = [
        "# made by tests/parity/make_golden.py",
        f"# diffusers {diffusers.__version__}, transformers {transformers.__version__}",
    ]
    for part, shapes in reference_shapes().items():
        lines += [f"[{part}]", *compact(shapes)]
    (FOLDER / "parameter_shapes.txt").write_text("\n".join(lines) + "\n")
    groups = {
        "transformer": cases_transformer.cases(),
        "lora": cases_lora.cases(),
        "vae": cases_vae.cases(),
        "text": cases_text.cases(),
        "schedulers": cases_schedulers.cases(),
        "came": cases_came.cases(),
    }
    for group, cases in groups.items():
        for number, (name, arrays) in enumerate(cases.items()):
            path = FOLDER / f"{group}-{number:02d}.npz"
            np.savez_compressed(path, case=np.array(name), **arrays)
            print(f"{path.name} {path.stat().st_size} bytes: {name}")


if __name__ == "__main__":
    main()
