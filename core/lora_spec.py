"""Which layers a LoRA adapts, and the shapes of what it adds (arXiv 2106.09685). No MindSpore here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from core.errors import UserError
from core.params import ParamSpec, ParamTable

DEFAULT_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_WEIGHT = ".weight"
_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Rank, alpha and targets; the low-rank term is scaled by ``alpha / rank``.

    A target is a layer's name or the end of it after a dot (``to_q``, ``attn1.to_out.0``), or, with one of ``*?[``, a
    pattern of fnmatch for the whole name (``transformer_blocks.*.ff.net.*``).

    Raises:
        UserError: rank below 1, alpha not a positive number, no targets.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = DEFAULT_TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank: got {self.rank}, need at least 1")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise UserError(f"lora.alpha: got {self.alpha}, need a positive number; the rank itself scales by 1")
        if not self.targets:
            raise UserError(f"lora.targets: got none, need layers' names or patterns such as {DEFAULT_TARGETS[0]}")


@dataclass(frozen=True, kw_only=True)
class ModuleRank:
    """Rank and alpha of one adapted layer; in loaded files they may differ from layer to layer."""

    rank: int
    alpha: float

    @property
    def scaling(self) -> float:
        """Factor of the low-rank term."""
        return self.alpha / self.rank


def layers(table: ParamTable) -> dict[str, tuple[int, ...]]:
    """Layers that can be adapted, ``name -> shape of its weight``: dense layers and 2-D convolutions."""
    return {
        name.removesuffix(_WEIGHT): spec.shape
        for name, spec in table.items()
        if name.endswith(_WEIGHT) and len(spec.shape) in (2, 4)
    }


def matches(module: str, target: str) -> bool:
    """Whether ``target`` (see ``LoRAConfig``) means the layer ``module``."""
    if _WILDCARDS & set(target):
        return fnmatchcase(module, target)
    return module == target or module.endswith("." + target)


def find_layers(table: ParamTable, targets: tuple[str, ...]) -> list[str]:
    """Names of the layers that ``targets`` mean, in the table's order.

    Raises:
        UserError: targets that mean no layer, with what is there.
    """
    names = layers(table)
    lost = [target for target in targets if not any(matches(name, target) for name in names)]
    if lost:
        there = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name, count=1) for name in names))
        raise UserError(
            f"lora.targets: got {', '.join(map(repr, lost))}, which matches no layer; need a layer's name, the end of "
            f"it after a dot, or a pattern for the whole name; there are {', '.join(there)}"
        )
    return [name for name in names if any(matches(name, target) for target in targets)]


def down_name(module: str) -> str:
    """Name of the layer's A, ``[rank, in]``."""
    return module + ".lora_A.weight"


def up_name(module: str) -> str:
    """Name of the layer's B, ``[out, rank]``."""
    return module + ".lora_B.weight"


def adapter_table(table: ParamTable, modules: Mapping[str, ModuleRank]) -> ParamTable:
    """The parameters that a LoRA adds to ``table``: A as PEFT starts it (torch's default for Linear), B zeros."""
    shapes, added = layers(table), {}
    for module, rank in modules.items():
        out_features, *inside = shapes[module]
        added[down_name(module)] = ParamSpec(shape=(rank.rank, *inside), fan_in=math.prod(inside))
        added[up_name(module)] = ParamSpec(shape=(out_features, rank.rank, *[1] * (len(inside) - 1)), init="zeros")
    return added
