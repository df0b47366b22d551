"""Updates of many tensors at once on the CPU by our own kernels (``kernels_optim.cpp``), outside compiled functions.

The kernels work on the tensors' own memory: what is updated is updated in place, so nothing exists twice, and no
operator has to be prepared for each tensor. That needs a device whose memory is the host's and work that is done when
it was asked for: ``core.ops`` calls this only then. None says that a type has no kernel, and nothing was changed.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mindspore as ms

_library: Any = None


def use(library: Path) -> None:
    """The kernels of a built library from now on."""
    global _library  # noqa: PLW0603  set once by ``ops.configure``
    _library = ctypes.CDLL(str(library))
    _library.square_sum.restype = ctypes.c_float


def adamw(bundle, factor, lr, correction1, correction2, beta1, beta2, rest1, rest2, eps, weight_decay):
    fields = {field: [p[field] for p in bundle] for field in ("value", "gradient", "m", "v")}
    if not _fp32(*fields.values()):
        return None
    given = (factor, lr, correction1, correction2, beta1, beta2, rest1, rest2, eps, weight_decay)
    numbers = (ctypes.c_float * len(given))(*(float(number) for number in given))
    gradients = [tensor.contiguous() for tensor in fields["gradient"]]
    sizes = _sizes(gradients)
    written = [_addresses(fields[field]) for field in ("value", "m", "v")]
    _library.adamw(ctypes.c_int64(len(bundle)), written[0], _addresses(gradients), *written[1:], sizes, numbers)
    return [(p["value"], p["m"], p["v"]) for p in bundle]


def came(bundle, factor, lr, *, beta1, rest1, beta2, rest2, eps1, clip_threshold, weight_decay, **of_matrices):
    if not _fp32(*(list(p.values()) for p in bundle)):
        return None
    beta3, rest3, eps2 = (of_matrices.get(name, 0.0) for name in ("beta3", "rest3", "eps2"))
    given = (factor, lr, beta1, rest1, beta2, rest2, beta3, rest3, eps1, eps2, clip_threshold, weight_decay)
    numbers = (ctypes.c_float * len(given))(*(float(number) for number in given))
    for given_p in bundle:
        p = {**given_p, "gradient": given_p["gradient"].contiguous()}
        shape = p["value"].shape
        if "v_row" in p:
            names = ("value", "gradient", "m", "v_row", "v_column", "residual_row", "residual_column")
            cut = (ctypes.c_int64 * 3)(math.prod(shape[:-2]), *shape[-2:])
            if _library.came_factored(cut, *_pointers(p, names), numbers):
                raise MemoryError("CAME: no memory for the sums over columns")
        else:
            names = ("value", "gradient", "m", "v")
            _library.came_unfactored(ctypes.c_int64(p["value"].size), *_pointers(p, names), numbers)
    return [tuple(p[name] for name in p if name != "gradient") for p in bundle]


def averaged(bundle, rest):
    averages, values = [p["average"] for p in bundle], [p["value"] for p in bundle]
    if not _fp32(averages, values):
        return None
    values = [tensor.contiguous() for tensor in values]
    rest = ctypes.c_float(float(rest))
    _library.averaged(ctypes.c_int64(len(bundle)), _addresses(averages), _addresses(values), _sizes(values), rest)
    return [(average,) for average in averages]


def square_sum(tensors: Sequence[ms.Tensor]) -> ms.Tensor | None:
    if not _fp32(tensors):
        return None
    tensors = [tensor.contiguous() for tensor in tensors]
    total = _library.square_sum(ctypes.c_int64(len(tensors)), _addresses(tensors), _sizes(tensors))
    return ms.Tensor(total, ms.float32)


def _fp32(*lists: Sequence[ms.Tensor]) -> bool:
    return all(tensor.dtype == ms.float32 for tensors in lists for tensor in tensors)


def _sizes(tensors: Sequence[ms.Tensor]) -> ctypes.Array:
    return (ctypes.c_int64 * len(tensors))(*(tensor.size for tensor in tensors))


def _pointers(p: dict[str, ms.Tensor], names: Sequence[str]) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(address) for address in _addresses([p[name] for name in names])]


def _addresses(tensors: Sequence[ms.Tensor]) -> ctypes.Array:
    """Where the elements are: the tensors must outlive the call."""
    assert all(tensor.is_contiguous() for tensor in tensors), "elements that are not in one piece"
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
