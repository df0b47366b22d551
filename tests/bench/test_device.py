"""Starting MindSpore as the recipe says and reading its counters, with a stand-in for the package."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

import bench.context
import core
from bench.context import synchronize
from bench.device import start_mindspore
from bench.memory import CPU_COUNTERS, device_peaks
from core.errors import UserError


def _fail(name: str) -> None:
    raise ValueError(f"For 'set_device', {name} is not supported.\nmore\nlines")


@pytest.fixture
def mindspore(monkeypatch):
    """A stand-in that writes down what it is asked to do."""
    calls: list = []

    def note(name: str, result=None):
        return lambda *args, **options: calls.append((name, *args, *options.items())) or result

    fake = ModuleType("mindspore")
    runtime = SimpleNamespace(
        set_memory=note("set_memory"),
        synchronize=note("synchronize"),
        max_memory_allocated=lambda: 5,
        max_memory_reserved=lambda: 7,
    )
    names = {"set_device": note("device"), "set_deterministic": note("deterministic"), "set_seed": note("seed")}
    names |= {"runtime": runtime, "__version__": "2.x", "calls": calls, "get_context": lambda key: "Ascend"}
    for name, value in names.items():
        setattr(fake, name, value)
    ops = ModuleType("core.ops")
    said = {"chosen_kernels": lambda: "which kernels", "chosen_launch": lambda: "how"}
    for name, value in {"configure": note("configure"), **said}.items():
        setattr(ops, name, value)
    monkeypatch.setitem(sys.modules, "mindspore", fake)
    monkeypatch.setitem(sys.modules, "core.ops", ops)
    monkeypatch.setattr(core, "ops", ops, raising=False)
    return fake


def _runtime(**changes) -> SimpleNamespace:
    values = {
        "device": "ascend",
        "mode": "graph",
        "jit_level": "O0",
        "kernels": "operators",
        "deterministic": True,
        "max_device_memory": "59GB",
    }
    return SimpleNamespace(**values | changes)


def test_every_runtime_setting_reaches_mindspore(mindspore):
    facts = start_mindspore(_runtime(), seed=7)
    assert mindspore.calls == [
        ("device", "Ascend"),
        ("deterministic", True),
        ("set_memory", ("max_size", "59GB")),
        ("seed", 7),
        ("configure", ("device", "Ascend"), ("mode", "graph"), ("jit_level", "O0"), ("kernels", "operators")),
    ]
    assert facts["mindspore"] == "2.x"
    assert facts["device"] == "Ascend"
    assert facts["kernels"] == "which kernels"
    assert facts["launch"] == "how"


@pytest.mark.parametrize(
    ("cores", "here", "index", "kept"),
    [(2, 1, 0, {0, 1}), (1, 1, 0, {0}), (8, 2, 1, {4, 5, 6, 7}), (2, 4, 3, {1}), (4, 2, 5, {2, 3}), (3, 2, 0, {0})],
)
def test_each_rank_keeps_to_cores_of_its_own(mindspore, monkeypatch, cores, here, index, kept):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr("os.sched_setaffinity", lambda pid, given: mindspore.calls.append(("cores", pid, set(given))))
    monkeypatch.setattr("bench.rank.current", lambda: SimpleNamespace(of=8, here=here, index=index, identity=None))
    monkeypatch.setattr("bench.device._join_ranks", lambda here: None)
    start_mindspore(_runtime(device="cpu"), seed=7)
    assert mindspore.calls[:3] == [("device", "CPU"), ("deterministic", True), ("cores", 0, kept)]


def test_a_device_that_is_not_there_is_the_users_error(mindspore):
    mindspore.set_device = _fail
    with pytest.raises(UserError, match="got ascend, but this MindSpore can't use it") as caught:
        start_mindspore(_runtime(), seed=0)
    assert "\n" not in str(caught.value)


def test_device_counters_are_read_and_a_zero_is_not_a_reading(mindspore):
    assert device_peaks() == {"allocated": 5, "reserved": 7, "reason": None}
    mindspore.runtime.max_memory_reserved = lambda: 0
    assert device_peaks()["reason"] == "the device's counters returned 0"
    mindspore.get_context = lambda key: "CPU"
    assert device_peaks() == {"allocated": None, "reserved": None, "reason": CPU_COUNTERS}


def test_clocks_wait_for_the_device_and_the_first_call_counts_double(mindspore, monkeypatch):
    monkeypatch.setattr(bench.context, "_already", [])
    synchronize()
    assert mindspore.calls == [("synchronize",)] * 2
    synchronize()
    assert mindspore.calls == [("synchronize",)] * 3
