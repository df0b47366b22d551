"""The Cell that holds a model's parameters. See ``core.params`` for the idea."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.common.initializer import Initializer

from core import ops
from core.compiling import runtime
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


class Unread:
    """A tensor of ``shape`` that lies on the disk; ``read()`` reads it, anew each time."""

    def __init__(self, shape: tuple[int, ...], read: Callable[[], ms.Tensor]):
        self.shape, self.read = shape, read


def _read(value: Any) -> Any:
    return value.read() if isinstance(value, Unread) else value


class Handed(dict[str, ms.Tensor]):
    """What ``Model.block`` hands out, and which of it is not trained.

    With a ``source`` the tensors that it names are parts: ``source.gather`` makes them whole where they are used and
    ``source.scatter`` takes their gradients apart (``core.parallel.gathering.Gathering``). An ``Unread`` is read
    whenever it is asked for.
    """

    def __init__(self, tensors: Mapping[str, ms.Tensor], frozen: frozenset[str], source: Any = None, whole: Any = None):
        super().__init__(tensors)
        self.frozen, self.source, self._whole = frozen, source, whole

    def __getitem__(self, name: str) -> ms.Tensor:
        return _read(super().__getitem__(name))

    def unread(self, name: str) -> ms.Tensor | Unread:
        """The tensor, or where it lies."""
        return super().__getitem__(name)

    def inside(self, name: str) -> Handed:
        """What is called ``name.*``, by the rest of its name; nothing is read."""
        place = len(name) + 1
        held: dict[str, Any] = {k[place:]: self.unread(k) for k in self if k.startswith(name + ".")}
        return Handed(held, frozenset())

    def get(self, name: str, default: Any = None) -> Any:
        """As a dict's."""
        return _read(super().get(name, default))

    def values(self) -> Any:
        """All tensors, those on the disk too."""
        return [self[name] for name in self]

    def items(self) -> Any:
        """Likewise."""
        return [(name, self[name]) for name in self]

    def whole(self) -> Handed:
        """The same with whole tensors, through which gradients pass."""
        return self if self.source is None else self._whole()


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
        self._storage: Any = None  # who holds the trained parameters where several processes do (core.parallel.zero)
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

    def adopt(self, name: str, value: np.ndarray) -> None:
        """Sets parameter ``name`` to an array of its shape and stored type, whose memory becomes the parameter's."""
        parameter = self._params[name]
        assert tuple(parameter.shape) == tuple(value.shape), (name, parameter.shape, value.shape)
        tensor = ms.Tensor.from_numpy(value)
        assert tensor.dtype == self.param_dtype, (name, tensor.dtype, self.param_dtype)
        parameter.set_data(tensor)

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

    def keep_in(self, storage: Any) -> None:
        """Hands out what ``storage`` keeps (``core.parallel.zero.Zero``) in place of the parameters of its names."""
        self._storage = storage
        self._blocks.clear()

    @property
    def storage(self) -> Any:
        """What ``keep_in`` was given, or None."""
        return self._storage

    def replace(self, name: str, part: ms.Parameter) -> None:
        """Puts a part in the place of parameter ``name``, whose memory is free then."""
        self._params[name] = part
        self._types[name] = part.dtype
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
        kept = [short for short, (name, _) in held.items() if self._sharded(name)]
        # What a rule made may depend on trained parameters.
        frozen = frozenset(
            s for s, (name, q) in held.items() if name not in self.hand_out and s not in kept and not _trained(q)
        )

        def whole() -> Handed:
            full = self.fetch([held[s][0] for s in kept]) if kept else []
            given = dict(zip(kept, full, strict=True))
            return Handed({s: self._handed_out(name, q, given.get(s)) for s, (name, q) in held.items()}, frozen)

        if not kept or not self._storage.lazy() or any(name in self.hand_out for name, _ in held.values()):
            return whole()
        parts = {s: self._storage.part(held[s][0]) for s in kept}
        rest = {s: self._handed_out(name, q, None) for s, (name, q) in held.items() if s not in kept}
        source = self._storage.gathering([held[s][0] for s in kept], kept)
        return Handed({s: parts[s] if s in parts else rest[s] for s in held}, frozen, source, whole)

    def fetch(self, names: Sequence[str]) -> list[ms.Tensor]:
        """Whole parameters in their stored type, through which gradients pass."""
        if all(self._sharded(name) for name in names):
            return self._storage.full(names)
        return [self._params[name] for name in names]

    def _sharded(self, name: str) -> bool:
        return self._storage is not None and self._storage.keeps(name)

    def _handed_out(self, name: str, parameter: ms.Parameter, full: ms.Tensor | None) -> ms.Tensor:
        rule = self.hand_out.get(name)
        if full is not None:
            return (full if rule is None else rule(full)).astype(self.compute_dtype)
        # Types and names are looked up: to ask a parameter waits until all pending work is done (MindSpore 2.10).
        if rule is None and self._types.get(name, self.param_dtype) == self.compute_dtype:
            return parameter if runtime.mode == "pynative" else parameter.view(parameter.shape)
        return (parameter if rule is None else rule(parameter)).astype(self.compute_dtype)


def _trained(parameter: ms.Parameter) -> bool:
    """``requires_grad`` from the private field: the property waits until all pending work is done."""
    return parameter._param_info.requires_grad


class _Empty(Initializer):
    """Leaves the memory as it is: every parameter is assigned before use."""

    def _initialize(self, arr):
        return None
