"""The examination with probes answered by the test: each lack is named with its reason."""

from __future__ import annotations

import sys

import pytest

from bench import doctor

_VERBOSE = """onednn_verbose,v1,info,oneDNN v3.5.0
onednn_verbose,v1,info,cpu,isa:Intel AVX-512 with bfloat16 support
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef
onednn_verbose,v1,primitive,exec,cpu,convolution,{},forward_training,src
"""
_MINDSPORE = {"version": "2.10.0", "devices": ["CPU"], "counter_bytes": 0}
_VIDEO = {
    "av": "18.1",
    "av_error": None,
    "decord": None,
    "decord_error": "ImportError: x",
    "codecs": {"h264": True, "hevc": False},
}


def _examine(monkeypatch, mindspore: dict, video: dict) -> dict:
    monkeypatch.setattr(doctor, "_probe", lambda name, env: {"mindspore": mindspore, "video": video}[name])
    return {f["name"]: f for f in doctor.examine()}


@pytest.mark.parametrize(("kernel", "state"), [("jit_uni_ncsp:conv+ref:any", "limited"), ("brgconv:avx2", "ok")])
def test_the_convolution_kernel_is_read_from_onednn(monkeypatch, kernel, state):
    facts = _MINDSPORE | doctor.onednn(_VERBOSE.format(kernel))
    found = _examine(monkeypatch, facts, _VIDEO)
    assert found["convolution"]["state"] == state
    assert kernel in found["convolution"]["detail"]
    assert "Intel AVX-512" in found["convolution"]["detail"]
    assert found["device memory"]["state"] == "limited"
    assert doctor.usable(list(found.values()))
    assert found["decord"]["state"] == "missing"
    assert found["codecs"]["state"] == "limited"
    assert len(doctor.lines(list(found.values()))) >= len(found)


def test_without_mindspore_nothing_can_run(monkeypatch):
    found = _examine(monkeypatch, {"error": "exit code -11: no message"}, {"error": "x"})
    assert found["mindspore"]["state"] == "missing"
    assert not doctor.usable(list(found.values()))
    assert found["video"]["state"] == "missing"


def test_without_a_card_ascend_is_not_measured(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = _examine(monkeypatch, _MINDSPORE | doctor.onednn(""), _VIDEO)
    assert found["ascend"]["detail"] == "not measured: no npu-smi on this machine"
    assert found["convolution"]["detail"] == "not measured: oneDNN printed no kernel"


def test_simulation_is_pointed_out(monkeypatch):
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "0")
    found = _examine(monkeypatch, _MINDSPORE | doctor.onednn(""), _VIDEO)
    assert found["simulation"]["state"] == "limited"


@pytest.mark.parametrize("program", ["import os; os.abort()", "print('no json')"])
def test_a_probe_that_crashes_is_an_error_not_a_crash(monkeypatch, tmp_path, program):
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{program}"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    assert "exit code" in doctor._probe("video", {})["error"]
