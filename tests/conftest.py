"""Settings of every test: no network, errors where they happen, the same numbers each time."""

from __future__ import annotations

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
# Before MindSpore loads: with AVX-512 its convolutions reach oneDNN's reference kernel (docs/design/002).
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
os.environ.setdefault("GLOG_v", "3")
# A worker of pytest-xdist gets a core of its own, and MindSpore, which counts the cores that it may use, one thread:
# two processes with two spinning threads each on two cores would slow each other many times.
if (_worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})

import mindspore  # noqa: F401  before decord: the other way round MindSpore aborts the process at start
import pytest


@pytest.fixture(autouse=True)
def _in_tmp_folder(tmp_path, monkeypatch):
    """Compilers and programs under test leave files in the working directory; it is a temporary one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _synchronous_mindspore():
    """Without this an operator's error surfaces in the next test."""
    if "mindspore" in sys.modules:
        from core import ops

        ops.configure()
