"""How a model holds its parameters: a flat table of published names, and pure functions that read from it.

A model is described by a table ``name -> ParamSpec`` (plain Python, no MindSpore, so a 5B model can be
checked or priced on a laptop). ``Model`` turns the table into MindSpore parameters of exactly those names.
The mathematics are pure functions ``f(p, *tensors)`` where ``p`` maps the names *inside* a block
(``"attn1.to_q.weight"``) to tensors; ``core.ops.compiled`` compiles such a function once and reuses it for
every block of the same shape (docs/design/003).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Init = Literal["zeros", "ones", "normal", "fan_in", "sincos"]


@dataclass(frozen=True, kw_only=True)
class ParamSpec:
    """Shape and initialisation of one parameter.

    ``init``: ``fan_in`` draws U(-b, b) with b = 1/sqrt(fan_in) (torch's default for Linear and Conv),
    ``normal`` draws N(0, std), ``zeros`` and ``ones`` are what they say, ``sincos`` is filled by the model.
    """

    shape: tuple[int, ...]
    init: Init = "fan_in"
    std: float = 0.02
    fan_in: int | None = None
    trainable: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


ParamTable = dict[str, ParamSpec]


def linear_spec(name: str, in_features: int, out_features: int, *, bias: bool = True) -> ParamTable:
    """Table of one linear layer: ``weight [out, in]`` and, with ``bias``, ``bias [out]``."""
    table = {f"{name}.weight": ParamSpec(shape=(out_features, in_features))}
    if bias:
        table[f"{name}.bias"] = ParamSpec(shape=(out_features,), fan_in=in_features)
    return table


def conv_spec(
    name: str, in_channels: int, out_channels: int, kernel: tuple[int, ...], *, bias: bool = True
) -> ParamTable:
    """Table of one convolution: ``weight [out, in, *kernel]`` and, with ``bias``, ``bias [out]``."""
    fan_in = in_channels * math.prod(kernel)
    table = {f"{name}.weight": ParamSpec(shape=(out_channels, in_channels, *kernel), fan_in=fan_in)}
    if bias:
        table[f"{name}.bias"] = ParamSpec(shape=(out_channels,), fan_in=fan_in)
    return table


def norm_spec(name: str, dim: int, *, affine: bool = True, bias: bool = True) -> ParamTable:
    """Table of one normalisation layer: ``weight [dim]`` of ones and ``bias [dim]`` of zeros."""
    if not affine:
        return {}
    table = {f"{name}.weight": ParamSpec(shape=(dim,), init="ones")}
    if bias:
        table[f"{name}.bias"] = ParamSpec(shape=(dim,), init="zeros")
    return table


def prefixed(prefix: str, table: ParamTable) -> ParamTable:
    """The same table with ``prefix.`` before every name."""
    return {f"{prefix}.{name}": spec for name, spec in table.items()}
