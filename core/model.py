"""The Cell that holds a model's parameters. See ``core.params`` for the idea."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.common.initializer import Initializer

from core import ops
from core.params import ParamSpec, ParamTable


def initial_array(name: str, spec: ParamSpec, seed: int) -> np.ndarray:
    """Float32 start value of one parameter; depends only on (seed, name), never on the order of creation."""
    if spec.init == "zeros":
        return np.zeros(spec.shape, np.float32)
    if spec.init == "ones":
        return np.ones(spec.shape, np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if spec.init == "normal":
        return (rng.standard_normal(spec.shape) * spec.std).astype(np.float32)
    fan_in = spec.fan_in or spec.shape[-1]
    bound = 1.0 / np.sqrt(fan_in)
    return rng.uniform(-bound, bound, spec.shape).astype(np.float32)


class Handed(dict[str, ms.Tensor]):
    """What ``Model.block`` hands out, and which of it is not trained."""

    def __init__(self, tensors: Mapping[str, ms.Tensor], frozen: frozenset[str]):
        super().__init__(tensors)
        self.frozen = frozen


class Model(nn.Cell):
    """Parameters named exactly as in the published checkpoint, and access to them by block.

    Args:
        table: ``name -> ParamSpec``.
        dtype: type in which the parameters are stored.
        compute_dtype: type in which ``block`` hands them out; None is ``dtype`` as far as the device has kernels.
    """

    def __init__(self, table: ParamTable, dtype: ms.Type = ms.float32, compute_dtype: ms.Type | None = None):
        super().__init__()
        self.table = table
        self.param_dtype = dtype
        self.compute_dtype = compute_dtype or ops.runnable_dtype(dtype)
        self.source_types: dict[str, int] = {}  # stored type -> tensors, of the checkpoint that was loaded
        self.adapter: Any = None  # what core.lora keeps here while a LoRA is attached
        self.hand_out: dict[str, Callable] = {}  # name -> function of the parameter, applied where block hands it out
        self._hidden: set[str] = set()
        self._types: dict[str, ms.Type] = {}  # of parameters from outside
        self._blocks: dict[tuple, dict[str, tuple[str, ms.Parameter]]] = {}
        for name, spec in table.items():
            tensor = ms.Tensor(shape=spec.shape, dtype=dtype, init=_Empty())
            parameter = ms.Parameter(tensor, name=name, requires_grad=spec.trainable)
            self.insert_param_to_cell(name, parameter, check_name_contain_dot=False)

    if TYPE_CHECKING:  # MindSpore annotates the call of a Cell as a union of everything a graph may return

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Runs ``construct``."""

    def initialize(self, seed: int) -> Self:
        """Fills every parameter from ``seed``; returns the model."""
        for name, spec in self.table.items():
            value = self.special_init(name) if spec.init == "sincos" else initial_array(name, spec, seed)
            self.assign(name, value)
        return self

    def special_init(self, name: str) -> np.ndarray:
        """Start value of a parameter that only the model can compute."""
        raise AssertionError(f"{name} has no rule for its start value")

    def assign(self, name: str, value: np.ndarray) -> None:
        """Sets parameter ``name`` to ``value`` (same shape), cast to the stored type."""
        parameter = self._params[name]
        assert tuple(parameter.shape) == tuple(value.shape), (name, parameter.shape, value.shape)
        parameter.set_data(ms.Tensor(value).astype(self.param_dtype))

    def add(self, parameter: ms.Parameter, *, handed_out: bool = True) -> None:
        """Adds a parameter from outside (not in ``table``, any type); ``handed_out``: ``block`` returns it."""
        self.insert_param_to_cell(parameter.name, parameter, check_name_contain_dot=False)
        self._types[parameter.name] = parameter.dtype
        if not handed_out:
            self._hidden.add(parameter.name)
        self._blocks.clear()

    def withdraw(self, name: str) -> None:
        """Takes a parameter that was added away again, with its rule in ``hand_out``."""
        del self._params[name]
        self.hand_out.pop(name, None)
        self._types.pop(name, None)
        self._hidden.discard(name)
        self._blocks.clear()

    def block(self, *prefixes: str, keep_prefix: bool = False) -> Handed:
        """Tensors whose names begin with one of ``prefixes`` and a dot, keyed by the rest of the name (or the whole).

        They are *views* of the parameters: gradients flow to the parameters, and a compiled function
        that receives them is shared by all blocks (a Parameter as an argument would be compiled anew for each).
        """
        key = (prefixes, keep_prefix)
        if key not in self._blocks:
            self._blocks[key] = {
                name if keep_prefix else name[len(prefix) + 1 :]: (name, parameter)
                for prefix in prefixes
                for name, parameter in self._params.items()
                if name.startswith(prefix + ".") and name not in self._hidden
            }
        held = self._blocks[key]
        # What a rule made may depend on trained parameters.
        frozen = frozenset(short for short, (name, q) in held.items() if name not in self.hand_out and not _trained(q))
        return Handed({short: self._handed_out(name, q) for short, (name, q) in held.items()}, frozen)

    def _handed_out(self, name: str, parameter: ms.Parameter) -> ms.Tensor:
        rule = self.hand_out.get(name)
        # Types and names are looked up: to ask a parameter waits until all pending work is done (MindSpore 2.10).
        if rule is None and self._types.get(name, self.param_dtype) == self.compute_dtype:
            return parameter.view(parameter.shape)
        return (parameter if rule is None else rule(parameter)).astype(self.compute_dtype)


def _trained(parameter: ms.Parameter) -> bool:
    """``requires_grad`` from the private field: the property waits until all pending work is done."""
    return parameter._param_info.requires_grad


class _Empty(Initializer):
    """Leaves the memory as it is: every parameter is assigned before use."""

    def _initialize(self, arr):
        return None
