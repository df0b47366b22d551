"""Facts about machine and code: every unknown has a reason, git states are told apart, secrets stay out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bench import environment, memory
from bench.child_env import child_environment, full_environment
from bench.record import null_keys
from core import native


def test_every_null_has_a_reason_and_nothing_else_has():
    found, reasons = environment.collect({"OMP_NUM_THREADS": "2", "AWS_SECRET_ACCESS_KEY": "x", "HOME": "/root"})
    assert set(reasons) == set(null_keys({"environment": found}))
    assert all(reasons.values())
    assert found["variables"] == {"OMP_NUM_THREADS": "2"}
    assert found["packages"]["mindspore"]
    assert found["packages"]["numpy"]
    json.dumps(found, allow_nan=False)


def test_digests_tell_hardware_from_software():
    a, _ = environment.collect({})
    b, _ = environment.collect({"OMP_NUM_THREADS": "1"})
    assert a["hardware_digest"] == b["hardware_digest"]
    assert a["software_digest"] != b["software_digest"]


def test_a_package_that_is_missing_is_null_with_a_reason(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    reasons: dict[str, str] = {}
    assert environment.packages(reasons)["no-such-package"] is None
    assert reasons == {"packages.no-such-package": "not installed"}


def test_ascend_versions_come_from_files(tmp_path, monkeypatch):
    (tmp_path / "driver.info").write_text("Version=24.1.rc3\nascendhal_version=7.35\n")
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit" / "version.cfg").write_text("# comment\nruntime_running_version=[8.0.0:8.0.0]\n")
    files = {"driver": str(tmp_path / "driver.info"), "firmware": str(tmp_path / "none")}
    monkeypatch.setattr(environment, "_ASCEND_FILES", files)
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path / "toolkit"))
    tool = tmp_path / "npu-smi"
    tool.write_text("#!/bin/sh\necho '   NPU ID    : 0'; echo '   NPU ID    : 1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    reasons: dict[str, str] = {}
    assert environment.ascend(reasons) == {
        "driver": "24.1.rc3",
        "firmware": None,
        "cann": "8.0.0:8.0.0",
        "cards": ["0", "1"],
    }
    assert reasons == {"ascend.firmware": f"no version in {tmp_path}/none"}


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_code_states(tmp_path):
    root = tmp_path / "tree"
    (root / "core").mkdir(parents=True)
    (root / "core" / "a.py").write_text("a = 1\n")

    def state(where: Path = root):
        reasons: dict[str, str] = {}
        return environment.code(reasons, where), reasons

    bare, reasons = state()
    assert (bare.commit, bare.dirty) == (None, None)
    assert reasons == dict.fromkeys(("code.commit", "code.dirty"), "not in a git checkout")
    _git(root, "init", "-q")
    assert state()[1]["code.commit"] == "the git checkout has no commit"
    _git(root, "add", ".")
    _git(root, "commit", "-q", "-m", "x")
    clean, reasons = state()
    assert clean.commit
    assert len(clean.commit) == 40
    assert clean.dirty is False
    assert not reasons
    (root / "notes.txt").write_text("not code")
    assert state()[0] == clean
    (root / "core" / "a.py").write_text("a = 2\n")
    changed, _ = state()
    assert (changed.commit, changed.dirty) == (clean.commit, True)
    assert changed.digest != clean.digest
    inner = root / "venv"
    (inner / "core").mkdir(parents=True)
    assert state(inner)[1]["code.commit"] == "the code is installed, not in a git checkout of its own"


def test_code_digest_sees_names_and_content_but_not_results(tmp_path):
    (tmp_path / "reports" / "records").mkdir(parents=True)
    (tmp_path / "reports" / "a.py").write_text("1")
    first = environment.code_digest(tmp_path)
    (tmp_path / "reports" / "records" / "r.json").write_text("{}")
    assert environment.code_digest(tmp_path) == first
    (tmp_path / "reports" / "a.py").rename(tmp_path / "reports" / "b.py")
    assert environment.code_digest(tmp_path) != first


@pytest.mark.parametrize(
    ("recipe", "isa"),
    [
        ({"kind": "encode-video"}, "AVX2"),
        ({"kind": "decode-latents"}, "AVX2"),
        ({"kind": "generate"}, "AVX2"),
        ({"kind": "generate", "save": {"decode": False}}, None),
        ({"kind": "train"}, None),
        ({"kind": "train", "runtime": {"convolution_isa": "avx2"}}, "AVX2"),
        ({"kind": "encode-video", "runtime": {"convolution_isa": "default"}}, None),
        ({"kind": "encode-video", "runtime": {"device": "ascend"}}, None),
    ],
)
def test_the_instruction_set_follows_the_work(recipe, isa, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: native.Library(path=None, about="operators: no C++ compiler"))
    assert child_environment(recipe)["ONEDNN_MAX_CPU_ISA"] == isa
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert full_environment(recipe, Path("/code")).get("ONEDNN_MAX_CPU_ISA") == isa, "the recipe decides, not the shell"


@pytest.mark.parametrize(
    ("runtime", "isa"),
    [
        ({}, None),
        ({"kernels": "auto"}, None),
        ({"kernels": "operators"}, "AVX2"),
        ({"convolution_isa": "avx2"}, "AVX2"),
    ],
)
def test_our_own_convolution_needs_no_limit(runtime, isa, monkeypatch):
    monkeypatch.setattr(
        native, "library", lambda: native.Library(path=Path("kernels.so"), about="compiled: kernels.cpp")
    )
    assert child_environment({"kind": "train-vae", "runtime": runtime})["ONEDNN_MAX_CPU_ISA"] == isa


def test_the_seed_log_level_and_determinism_reach_the_child(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    recipe = {"kind": "train", "seed": 2**32 + 5, "runtime": {"log_level": "error", "device": "ascend"}}
    env = full_environment(recipe, Path("/code"))
    assert (env["PYTHONHASHSEED"], env["GLOG_v"], env["HCCL_DETERMINISTIC"]) == ("5", "3", "true")
    assert env["PYTHONPATH"] == "/code:/mine"


@pytest.mark.parametrize(
    "text",
    [
        "Memory not enough: device 0",
        "RuntimeError: Failed to alloc memory pool",
        "RuntimeError: Allocate device memory failed, alloc size:64225280B",
        "RuntimeError: Allocate output memory failed, alloc node:Default/Custom-op9 alloc size:31195136B",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "numpy.core._exceptions._ArrayMemoryError: Unable to allocate 8.00 GiB for an array with shape (1,)",
        "x\nMemoryError\n",
    ],
)
def test_out_of_memory_texts(text):
    assert memory.OOM_TEXT.search(text)


@pytest.mark.parametrize("text", ["memory pool allocated", "checking memory", "no MemoryError today"])
def test_texts_that_only_mention_memory(text):
    assert not memory.OOM_TEXT.search(text)


@pytest.mark.parametrize(
    ("child", "parent", "peak"), [(5, 3, 5), (3, 3, None), (2, 3, None), (5, None, 5), (None, 3, None)]
)
def test_a_mark_inherited_from_the_parent_is_no_reading(child, parent, peak):
    assert memory.own_peak(child, parent) == peak


def test_the_childs_own_mark_stands_in_for_an_unusable_one():
    found, reasons = memory.memory_of(None, {"hwm": 7, "device": None})
    assert (found.process_peak_bytes, found.process_hwm_bytes) == (7, 7)
    assert "memory.process_peak_bytes" not in reasons


def test_memory_reasons_cover_every_null():
    reported = {"hwm": 5, "device": {"allocated": 7, "reserved": 8, "reason": None}}
    for arguments in ((None, None), (10, None), (10, reported), (10, {"hwm": None, "device": None})):
        found, reasons = memory.memory_of(*arguments)
        assert set(reasons) == set(null_keys({"memory": found.model_dump(mode="json")}))
    found, _ = memory.memory_of(10, reported)
    assert (found.device_allocated_peak_bytes, found.process_hwm_bytes, found.max_rank) == (7, 5, 0)
