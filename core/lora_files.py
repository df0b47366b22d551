"""LoRA files: ``pytorch_lora_weights.safetensors`` of diffusers, ``adapter_model.safetensors`` of PEFT. No MindSpore.

Names inside are ``transformer.<layer>.lora_A.weight``; alpha is in the file's metadata (a JSON text under
``lora_adapter_metadata``), in ``adapter_config.json`` (PEFT), in tensors ``<layer>.alpha`` (other trainers), or
nowhere: then, as in diffusers, it equals the rank.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs to hand out bf16 tensors
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from core.checkpoint import read_json
from core.errors import UserError, WeightsError
from core.files import atomic_path
from core.lora_spec import LoRAConfig, ModuleRank, adapter_table, down_name, layers, matches, up_name
from core.params import ParamTable

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
_PEFT_NAME, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_METADATA_KEY = "lora_adapter_metadata"
_COMPONENT = "transformer."
_PREFIXES = ("base_model.model.", _COMPONENT)
_FLOATS = ("F64", "F32", "F16", "BF16")
# PEFT's names, and the older ones: to_q_lora.down, to_q.lora.down, to_q.lora_down.
_PART = re.compile(r"^(.+?)(?:\.lora_([AB])(?:\.default)?|[._]lora[._](down|up))\.weight$")
_NAMES = {"down": down_name, "up": up_name}
_ALPHA = re.compile(r"^(.+?)(?:[._]lora)?\.alpha$")


@dataclass(frozen=True, kw_only=True)
class LoRAFile:
    """What a file holds: the adapted layers, arrays fp32 by our names, and where alpha was found."""

    config: LoRAConfig
    modules: dict[str, ModuleRank]
    arrays: dict[str, np.ndarray]
    alpha_from: str


@dataclass
class _Found:
    """Tensors by layer: A and B as read, alphas, and what was wrong."""

    parts: dict[str, np.ndarray] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def find_file(path: str | Path) -> Path:
    """The safetensors file that ``path`` is or holds.

    Raises:
        UserError: nothing there, only a pickle, or several files of other names.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: got a {path.suffix or 'nameless'} file, need safetensors; convert it first")
        return path
    if not path.is_dir():
        raise UserError(f"{path}: not found; need a LoRA folder with {WEIGHTS_NAME}, or such a file")
    for name in (WEIGHTS_NAME, _PEFT_NAME):
        if (path / name).is_file():
            return path / name
    files = sorted(f for f in path.glob("*.safetensors") if not f.name.startswith("."))
    if len(files) == 1:
        return files[0]
    if files:
        raise UserError(f"{path}: got {len(files)} safetensors files, none named {WEIGHTS_NAME}; name the one you mean")
    pickles = sorted(f.name for f in path.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    hint = f" (found {pickles[0]}, a pickle, which is not read: convert it to safetensors first)" if pickles else ""
    raise UserError(f"{path}: no {WEIGHTS_NAME}{hint}")


def read_lora(path: str | Path, table: ParamTable) -> LoRAFile:
    """Reads the LoRA in ``path`` (file or folder) for a model with the parameters ``table``; strict both ways.

    Raises:
        UserError: no such file, see ``find_file``.
        WeightsError: every missing, unexpected, mis-shaped tensor and every setting that is not supported.
    """
    file = find_file(path)
    try:
        with safe_open(file, framework="np") as handle:
            header = handle.metadata() or {}
            found = _collect(handle, layers(table))
    except (SafetensorError, OSError) as error:
        raise WeightsError(str(file), [f"truncated or damaged ({error}); download it again"]) from None
    settings = _settings(file, header)
    if not found.parts:
        raise WeightsError(str(file), [f"no LoRA tensors in it; need names such as {_COMPONENT}<layer>.lora_A.weight"])
    names = [n for n in layers(table) if down_name(n) in found.parts or up_name(n) in found.parts]
    problems = found.problems + _setting_problems(settings) + _missing_layers(settings, names, table)
    modules = {}
    for module in names:
        rank = _rank(module, found.parts)
        if rank < 1:
            problems.append(f"{module}: got rank {rank}, need at least 1")
            continue
        modules[module] = ModuleRank(rank=rank, alpha=_alpha(module, rank, found.alphas, settings, problems))
    problems += _shape_problems(adapter_table(table, modules), found.parts)
    problems += [f"{m}.alpha stands without lora_A and lora_B" for m in found.alphas if m not in names]
    if problems:
        raise WeightsError(str(file), problems)
    source = "alpha tensors" if found.alphas else "metadata" if "lora_alpha" in settings else "none: equal to the rank"
    return LoRAFile(config=_config(modules, settings), modules=modules, arrays=found.parts, alpha_from=source)


def _collect(handle: Any, known: Mapping[str, tuple[int, ...]]) -> _Found:
    found, origin = _Found(), {}
    for key in sorted(handle.keys()):
        module, part = _parsed(key)
        stored = handle.get_slice(key).get_dtype()
        if module not in known:
            found.problems.append(f"unexpected {key}")
        elif stored not in _FLOATS and part != "alpha":
            found.problems.append(f"{key}: got type {stored}, need one of {', '.join(_FLOATS)}")
            found.parts[_NAMES[part](module)] = handle.get_tensor(key).astype(np.float32)
        elif part == "alpha":
            values = handle.get_tensor(key).astype(np.float32).reshape(-1)
            found.alphas[module] = float(values[0]) if values.size == 1 else math.nan
        else:
            name = _NAMES[part](module)
            if name in found.parts:
                found.problems.append(f"{key} and {origin[name]} are both {name}")
            origin[name] = key
            found.parts[name] = handle.get_tensor(key).astype(np.float32)
    return found


def _parsed(key: str) -> tuple[str, str]:
    """Layer and part (``down``, ``up``, ``alpha``) that a tensor's name means; empty for none."""
    name = key
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    name = name.replace(".processor.", ".")
    if found := _PART.match(name):
        module, part = found[1], found[3] or {"A": "down", "B": "up"}[found[2]]
    elif found := _ALPHA.match(name):
        module, part = found[1], "alpha"
    else:
        return "", ""
    return (module + ".0" if module.endswith(".to_out") else module), part


def _settings(file: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's LoraConfig as far as the file states it; empty for none."""
    if _METADATA_KEY in header:
        try:
            values = json.loads(header[_METADATA_KEY])
        except json.JSONDecodeError as error:
            raise WeightsError(str(file), [f"its metadata {_METADATA_KEY} is not JSON ({error})"]) from None
        return {key.removeprefix(_COMPONENT): value for key, value in values.items()}
    if file.name == _PEFT_NAME and (file.parent / _PEFT_CONFIG).is_file():
        return read_json(file.parent / _PEFT_CONFIG)
    return {}


def _setting_problems(settings: Mapping[str, Any]) -> list[str]:
    problems = []
    if settings.get("peft_type", "LORA") != "LORA":
        problems.append(f"got peft_type {settings['peft_type']}, need LORA")
    if settings.get("use_dora"):
        problems.append("got use_dora true, need false: its magnitudes are not supported")
    return problems


def _missing_layers(settings: Mapping[str, Any], names: list[str], table: ParamTable) -> list[str]:
    """Layers that the settings' list of targets means and the file lacks."""
    targets = settings.get("target_modules")
    narrowed = settings.get("layers_to_transform") or settings.get("exclude_modules")
    if not isinstance(targets, list) or narrowed:
        return []
    lost = [n for n in layers(table) if n not in names and any(matches(n, t) for t in targets)]
    return [f"missing {down_name(n)} and {up_name(n)}, which target_modules names" for n in lost]


def _rank(module: str, parts: Mapping[str, np.ndarray]) -> int:
    """Rows of A; without it, columns of B."""
    down, up = parts.get(down_name(module)), parts.get(up_name(module))
    if down is not None:
        return down.shape[0] if down.ndim > 1 else 0
    assert up is not None
    return up.shape[1] if up.ndim > 1 else 0


def _alpha(
    module: str, rank: int, alphas: Mapping[str, float], settings: Mapping[str, Any], problems: list[str]
) -> float:
    alpha = settings.get("lora_alpha", rank)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    if settings.get("use_rslora"):
        alpha = alpha * math.sqrt(rank)  # scales by alpha / sqrt(rank)
    alpha = alphas.get(module, alpha)
    if not (isinstance(alpha, int | float) and alpha > 0 and math.isfinite(alpha)):
        problems.append(f"{module}: got alpha {alpha}, need a positive number")
        return float(rank)
    return float(alpha)


def _shape_problems(need: ParamTable, parts: Mapping[str, np.ndarray]) -> list[str]:
    problems = [f"missing {name} {list(spec.shape)}" for name, spec in need.items() if name not in parts]
    return problems + [
        f"{name}: got shape {list(parts[name].shape)}, need {list(spec.shape)}"
        for name, spec in need.items()
        if name in parts and parts[name].shape != spec.shape
    ]


def _config(modules: Mapping[str, ModuleRank], settings: Mapping[str, Any]) -> LoRAConfig:
    (most, _), *_ = Counter(modules.values()).most_common(1)
    targets = settings.get("target_modules")
    # PEFT writes a set, in any order; without one the layers themselves are the targets.
    names = tuple(sorted(targets)) if isinstance(targets, list) else tuple(modules)
    return LoRAConfig(rank=most.rank, alpha=most.alpha, targets=names)


def write_lora(
    folder: str | Path, config: LoRAConfig, modules: Mapping[str, ModuleRank], arrays: Mapping[str, np.ndarray]
) -> Path:
    """Writes ``pytorch_lora_weights.safetensors`` for ``CogVideoXPipeline.load_lora_weights``; returns its path."""
    plain = all(not set("*?[") & set(target) for target in config.targets)
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(config.targets) if plain else list(modules),
        # Keys are regular expressions for the end of a name.
        "rank_pattern": {"^" + re.escape(m): r.rank for m, r in modules.items() if r.rank != config.rank},
        "alpha_pattern": {"^" + re.escape(m): r.alpha for m, r in modules.items() if r.alpha != config.alpha},
    }
    text = json.dumps({_COMPONENT + key: value for key, value in settings.items()}, indent=2, sort_keys=True)
    path = Path(folder) / WEIGHTS_NAME
    tensors = {_COMPONENT + name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"format": "pt", _METADATA_KEY: text})
    return path
