"""Our compiled kernels: right values and gradients, the same bits always, and operators where none can be built."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import mint
from mindspore.ops import GradOperation

from bench import environment
from core import native, ops, ops_cpu, ops_cpu_compiled
from tests.tolerances import OPERATOR, OPERATOR_GRADIENT, relative_error

ROOT = Path(__file__).resolve().parents[2]
BOTH = pytest.mark.parametrize("kernels", ["auto", "operators"])


@pytest.fixture
def fresh_library(tmp_path, monkeypatch):
    """``native.library`` as at a process's start, with an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.library.cache_clear()
    yield native.library
    native.library.cache_clear()


def _random(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


def _gelu64(x):
    x = x.astype(np.float64)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * x * (1 + np.tanh(inner)), 0.5 * (1 + np.tanh(inner)) + 0.5 * x * slope / np.cosh(inner) ** 2


def _with_gradient(function, *arrays):
    """``function`` compiled in graph mode: its value and the gradients for an output gradient of 1, 2, 3, ..."""
    run: Any = ms.jit(function)
    tensors = [ms.Tensor(a) for a in arrays]
    value = run(*tensors)
    sens = ms.Tensor(np.linspace(1, 2, value.size, dtype=np.float32).reshape(value.shape))
    gradients = GradOperation(get_all=True, sens_param=True)(run)(*tensors, sens)
    return value.asnumpy(), [g.asnumpy() for g in gradients], sens.asnumpy()


def test_a_compiler_means_compiled_kernels():
    compilers = [name for name in native.COMPILERS if shutil.which(name)]
    assert ops.chosen_kernels().startswith("compiled: kernels.cpp " if compilers else "operators: no C++ compiler")
    assert ops._device is (ops_cpu_compiled if compilers else ops_cpu)


@BOTH
@pytest.mark.parametrize("shape", [(1,), (7, 13), (100_003,), (3, 33, 512)])
def test_gelu_and_its_gradient(kernels, shape):
    ops.configure(kernels=kernels)
    x = _random(*shape, scale=3.0)
    value, (gradient,), sens = _with_gradient(_gelu, x)
    expected, slope = _gelu64(x)
    assert relative_error(value, expected) <= OPERATOR
    assert relative_error(gradient, slope * sens) <= OPERATOR_GRADIENT


def _gelu(x):
    return ops.gelu_tanh(x)


@BOTH
def test_gelu_far_out(kernels):
    ops.configure(kernels=kernels)
    x = np.array([0.0, -0.0, 1e30, -1e30, np.inf, np.nan, 12.0, -12.0, 1e-30], np.float32)
    value = ops.gelu_tanh(ms.Tensor(x)).asnumpy()
    np.testing.assert_allclose(value, [0, 0, 1e30, 0, np.inf, np.nan, 12, 0, 5e-31], atol=1e-20)


@BOTH
@pytest.mark.parametrize("mode", ["pynative", "graph"])
@pytest.mark.parametrize("shape", [(0,), (3, 0, 8)])
def test_nothing_in_nothing_out(kernels, mode, shape):
    ops.configure(kernels=kernels)
    run: Any = ms.jit(_gelu) if mode == "graph" else _gelu
    assert run(ms.Tensor(np.zeros(shape, np.float32))).shape == shape


@BOTH
@pytest.mark.parametrize("view", ["transposed", "sliced", "chunk", "broadcast"])
def test_views_in_pynative(kernels, view):
    """Kernels read dense memory: what is passed as a view must have been copied before."""
    take: Any = {
        "transposed": lambda x: x.transpose(2, 0, 1),
        "sliced": lambda x: x[:, 3:7, 2:6],
        "chunk": lambda x: mint.chunk(x, 2, 1)[1],
        "broadcast": lambda x: mint.broadcast_to(x[:1], (6, 10, 8)),
    }[view]
    ops.configure(kernels=kernels)
    x = ms.Tensor(_random(6, 10, 8))
    dense = take(x).asnumpy().copy()
    assert relative_error(ops.gelu_tanh(take(x)).asnumpy(), _gelu64(dense)[0]) <= OPERATOR
    weights = take(ms.Tensor(_random(6, 10, 8, seed=1)))  # makes the output's gradient a view as well
    gradient = GradOperation()(lambda x: (ops.gelu_tanh(x) * weights).sum())(ms.Tensor(dense)).asnumpy()
    assert relative_error(gradient, _gelu64(dense)[1] * weights.asnumpy()) <= OPERATOR_GRADIENT


def _norm64(x, w, b, g):
    """LayerNorm and its gradients in float64; ``w``, ``b`` broadcast against ``x [B, L, D]``."""
    x, w, b, g = (a.astype(np.float64) for a in (x, w, b, g))
    inverse = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    h = (x - x.mean(-1, keepdims=True)) * inverse
    dh = g * w
    dx = (dh - dh.mean(-1, keepdims=True) - h * (dh * h).mean(-1, keepdims=True)) * inverse
    return h * w + b, dx, g * h, g


@BOTH
@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 7, 19), (2, 133, 512)])
def test_layer_norm_and_its_gradients(kernels, shape):
    ops.configure(kernels=kernels)
    x, w, b = _random(*shape) + 3, _random(shape[-1], seed=1), _random(shape[-1], seed=2)
    value, (dx, dw, db), g = _with_gradient(_layer_norm, x, w, b)
    expected, x_gradient, w_rows, b_rows = _norm64(x, w, b, g)
    assert relative_error(value, expected) <= OPERATOR
    assert relative_error(dx, x_gradient) <= OPERATOR_GRADIENT
    assert relative_error(dw, w_rows.sum((0, 1))) <= OPERATOR_GRADIENT
    assert relative_error(db, b_rows.sum((0, 1))) <= OPERATOR_GRADIENT


@BOTH
def test_half_precision_is_normed_in_fp32(kernels):
    ops.configure(kernels=kernels)
    x, w, b = (_random(*shape, seed=seed) for seed, shape in enumerate([(3, 50), (50,), (50,)]))
    half: Any = [ms.Tensor(a).astype(ms.float16) for a in (x, w, b)]
    value = ops.layer_norm(half[0], half[1], half[2], 1e-5)
    assert value.dtype == ms.float16
    exact = _norm64(half[0].asnumpy(), half[1].asnumpy(), half[2].asnumpy(), np.zeros((1,)))[0]
    np.testing.assert_allclose(value.asnumpy(), exact, atol=2e-3, rtol=1e-3)


def _layer_norm(x, w, b):
    return ops.layer_norm(x, w, b, 1e-5)


@BOTH
@pytest.mark.parametrize("affine", [True, False])
def test_adaptive_norm_and_its_gradients(kernels, affine):
    ops.configure(kernels=kernels)
    x, w, b = _random(3, 21, 40), _random(40, seed=1), _random(40, seed=2)
    scale, shift = _random(3, 1, 40, seed=3), _random(3, 1, 40, seed=4)
    arrays = (x, scale, shift, w, b) if affine else (x, scale, shift)
    value, gradients, g = _with_gradient(_adaptive if affine else _adaptive_plain, *arrays)
    if not affine:
        w, b = np.ones(40, np.float32), np.zeros(40, np.float32)
    expected, dx, w_rows, b_rows = _norm64(x, w * (1 + scale), b * (1 + scale) + shift, g)
    need = [dx, (w_rows * w + b_rows * b).sum(1, keepdims=True), b_rows.sum(1, keepdims=True)]
    if affine:
        need += [(w_rows * (1 + scale)).sum((0, 1)), (b_rows * (1 + scale)).sum((0, 1))]
    assert relative_error(value, expected) <= OPERATOR
    for ours, reference in zip(gradients, need, strict=True):
        assert relative_error(ours, reference) <= OPERATOR_GRADIENT


def _adaptive(x, scale, shift, w, b):
    return ops.adaptive_norm(x, w, b, scale, shift, 1e-5)


def _adaptive_plain(x, scale, shift):
    return ops.adaptive_norm(x, None, None, scale, shift, 1e-5)


@BOTH
def test_rotation_and_its_gradient(kernels):
    """A rotation's gradient is the rotation back; tables that are no rotation check each factor of it."""
    ops.configure(kernels=kernels)
    x, cos, sin = _random(2, 3, 5, 8), _random(5, 8, seed=1), _random(5, 8, seed=2)
    value, (dx, dcos, dsin), g = _with_gradient(_rotate, x, cos, sin)
    even, odd = x[..., ::2], x[..., 1::2]
    turned = np.stack([-odd, even], -1).reshape(x.shape)
    assert relative_error(value, x * cos + turned * sin) <= OPERATOR
    h = g * sin
    back = np.stack([h[..., 1::2], -h[..., ::2]], -1).reshape(x.shape)
    assert relative_error(dx, g * cos + back) <= OPERATOR_GRADIENT
    assert not dcos.any()
    assert not dsin.any()


def _rotate(x, cos, sin):
    return ops.rotate(x, cos, sin)


def _twice(p, x):
    """Each kernel twice with equal shapes: a wrong pairing of backward and forward calls would show."""
    x = ops.layer_norm(ops.layer_norm(x, p["w"], p["b"], 1e-5) * p["w"], p["b"], p["w"], 1e-5)
    x = ops.gelu_tanh(ops.gelu_tanh(x) * p["w"] + p["b"])
    return ops.rotate(ops.rotate(x.reshape(1, 2, 4, 16), p["c"], p["s"]) * 2.0, p["s"], p["c"]).reshape(8, 16)


def _gradients(function):
    params = {n: ms.Parameter(ms.Tensor(_random(16, seed=i)), name=n) for i, n in enumerate("wb")}
    tables = {n: ms.Tensor(_random(4, 16, seed=i)) for i, n in enumerate("cs")}

    def loss(x):
        for _ in range(3):
            x = function({n: q.view(q.shape) for n, q in params.items()} | tables, x)
        return (x * x).sum()

    value_and_grad: Any = ms.value_and_grad
    value, (dx, dp) = value_and_grad(loss, 0, list(params.values()))(ms.Tensor(_random(8, 16)))
    return [t.asnumpy() for t in (value, dx, *dp)]


@pytest.mark.parametrize("wrapper", [ops.compiled, ops.recomputed])
def test_kernels_equal_operators_in_both_modes(wrapper):
    ops.configure(kernels="operators")
    expected = _gradients(_twice)
    for kernels in ("operators", "auto"):
        for mode in ("pynative", "graph"):
            ops.configure(mode=mode, kernels=kernels)
            for ours, reference in zip(_gradients(wrapper(_twice)), expected, strict=True):
                assert relative_error(ours, reference) <= OPERATOR_GRADIENT


def _digest(*tensors):
    return hashlib.sha256(b"".join(t.asnumpy().tobytes() for t in tensors)).hexdigest()


def _large():
    # Values down to the smallest that fp32 holds: threads that flush those to zero would show.
    x, w, b = (ms.Tensor(_random(*s, scale=3.0)) for s in ((300, 700), (700,), (700,)))
    both = GradOperation(get_all=True, sens_param=True)(ms.jit(_gelu_of_norm))
    return lambda: _digest(_gelu_of_norm(x, w, b), *both(x, w, b, x))


def _gelu_of_norm(x, w, b):
    return ops.gelu_tanh(ops.layer_norm(x, w, b, 1e-5))


def test_two_hundred_calls_and_one_thread_give_the_same_bits():
    call = _large()
    first = call()
    assert {call() for _ in range(200)} == {first}
    program = (
        f"import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.core import test_kernels as t; t.ops.configure(); print('DIGEST', t._large()())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert f"DIGEST {first}" in done.stdout


def _direct(name, inputs, outputs, kind=b"float32", library=None):
    """Calls a kernel of the library as MindSpore does; its return value."""
    arrays = [*inputs, *outputs]
    count = len(arrays)
    data = (ctypes.c_void_p * count)(*[a.ctypes.data for a in arrays])
    ranks = (ctypes.c_int * count)(*[a.ndim for a in arrays])
    pointer = ctypes.POINTER(ctypes.c_int64)
    shapes = (pointer * count)(*[ctypes.cast((ctypes.c_int64 * a.ndim)(*a.shape), pointer) for a in arrays])
    path = native.library().path if library is None else library
    assert path is not None
    function = getattr(ctypes.CDLL(str(path)), name)
    return function(count, data, ranks, shapes, (ctypes.c_char_p * count)(*[kind] * count), None, None)


def _direct_gelu(x):
    y = np.empty_like(x)
    assert _direct("gelu", [x], [y]) == 0
    return y


def test_calls_from_several_threads_and_after_a_fork():
    if native.library().path is None:
        assert ops._device is ops_cpu  # no library: nothing to call
        return
    x = _random(400_000)
    expected = _direct_gelu(x)
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(y, expected) for y in pool.map(_direct_gelu, [x] * 40))
    program = (
        "import ctypes, os, sys; import numpy as np\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.core import test_kernels as t\n"
        "x = t._random(400_000); y = t._direct_gelu(x)\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if np.array_equal(t._direct_gelu(x), y) else 1)\n"
        "print('CHILD', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert "CHILD 0" in done.stdout


def test_a_thread_that_flushes_small_numbers_gets_the_same_bits():
    """Some of MindSpore's threads run so; on x86 the switches are bits 6 and 15 of a word of the C library's fenv_t."""
    if native.library().path is None or platform.machine() != "x86_64":
        return
    x = np.linspace(-12, -8, 70_001, dtype=np.float32)
    expected = _direct_gelu(x)
    sigmoid = np.abs(expected / x)
    assert ((sigmoid > 0) & (sigmoid < np.finfo(np.float32).tiny)).sum() > 100
    maths = ctypes.CDLL("libm.so.6")
    before, flushing = (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
    maths.fegetenv(before)
    maths.fegetenv(flushing)
    flushing[7] |= 1 << 6 | 1 << 15
    maths.fesetenv(flushing)
    try:
        again = _direct_gelu(x)
    finally:
        maths.fesetenv(before)
    assert again.tobytes() == expected.tobytes()


def test_other_types_and_counts_are_refused():
    if native.library().path is None:
        assert ops._device is ops_cpu
        return
    x = _random(8)
    assert _direct("gelu", [x], [x.copy()], b"float16") == 1
    assert _direct("gelu", [x, x], [x.copy()]) == 1
    half = ops.gelu_tanh(ms.Tensor(x).astype(ms.float16))
    assert half.dtype == ms.float16


def test_without_a_compiler_the_operators_are_used(fresh_library, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    ops.configure()
    assert fresh_library().path is None
    assert ops.chosen_kernels().startswith("operators: no C++ compiler (g++, c++, clang++)")
    assert ops._device is ops_cpu
    ops.configure(kernels="operators")
    assert ops.chosen_kernels() == "operators: as configured"


def _fake_compiler(folder, body):
    compiler = folder / "g++"
    compiler.write_text("#!/bin/sh\n" + 'if [ "$1" = --version ]; then echo "fake 1.0"; exit 0; fi\n' + body)
    compiler.chmod(0o755)
    return str(folder)


def test_a_compiler_that_fails_is_named_in_the_record(fresh_library, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", _fake_compiler(tmp_path, "echo 'x.cpp: error: no headers' >&2; exit 1\n"))
    assert "failed (x.cpp: error: no headers)" in fresh_library().about
    assert not list((tmp_path / "cache" / "cogbench").iterdir())


def test_a_cache_folder_that_cannot_be_written(fresh_library, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATH", _fake_compiler(tmp_path, "exit 0\n"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fresh_library().path is None
    assert "could not be built" in fresh_library().about


def test_a_library_that_cannot_be_loaded_is_built_again_and_then_given_up(fresh_library, monkeypatch, tmp_path):
    body = f'echo x >> {tmp_path}/calls\nwhile [ "$1" != -o ]; do shift; done\necho damaged > "$2"\n'
    monkeypatch.setenv("PATH", _fake_compiler(tmp_path, body) + ":/usr/bin:/bin")
    assert fresh_library().path is None
    assert (tmp_path / "calls").read_text().split() == ["x", "x"]


def test_processes_that_start_together_share_one_file(tmp_path):
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from core import native; print(native.library())"
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    options: Any = {"env": env, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([sys.executable, "-c", program], **options) for _ in range(3)]
    answers = {process.communicate(timeout=120)[0] for process in running}
    assert len(answers) == 1
    built = list((tmp_path / "cache").rglob("*"))
    assert [path.suffix for path in built if path.is_file()] == ([".so"] if "compiled" in answers.pop() else [])


def test_the_source_is_package_data_and_in_the_codes_digest():
    sources = (*native.HEADERS, *native.SOURCES)
    assert all(path.suffix in environment._CODE_SUFFIXES for path in sources)
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert all(any(path.match(pattern) for pattern in setup["package-data"]["core"]) for path in sources)
