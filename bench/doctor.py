"""``cogbench doctor``: what this machine can and cannot measure, and why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any, Literal

from bench.child_env import full_environment
from bench.doctor_probe import PROBES
from bench.environment import ascend, code_root, cpu, memory, package_version

State = Literal["ok", "limited", "missing"]
_PROBE_SECONDS = 180
_REQUIRED = frozenset({"mindspore"})


def finding(name: str, state: State, detail: str, remedy: str = "", **values: Any) -> dict[str, Any]:
    """One line of the examination."""
    return {"name": name, "state": state, "detail": detail, "remedy": remedy, "values": values}


def examine(roofline: str | None = None) -> list[dict[str, Any]]:
    """All findings; ``roofline``: a preset on whose shapes the rate of matrix products is measured.

    MindSpore and the video libraries are tried in child processes, since either may crash.
    """
    env = full_environment({"kind": "doctor", "runtime": {"device": "cpu"}}, code_root())
    return [
        *_machine(),
        *_ascend(),
        *_mindspore(_probe("mindspore", env | {"ONEDNN_VERBOSE": "1"})),
        *_video(_probe("video", env)),
        _simulation(),
        *([_roofline(roofline)] if roofline else []),
    ]


def usable(findings: list[dict[str, Any]]) -> bool:
    """Whether recipes can run here at all."""
    return not any(f["name"] in _REQUIRED and f["state"] == "missing" for f in findings)


def lines(findings: list[dict[str, Any]]) -> list[str]:
    """The findings for people, one a line, remedies indented."""
    width = max(len(f["name"]) for f in findings)
    shown = []
    for f in findings:
        shown.append(f"{f['state']:8} {f['name']:{width}}  {f['detail']}")
        if f["remedy"]:
            shown.append(f"{'':8} {'':{width}}  -> {f['remedy']}")
    return shown


def _machine() -> list[dict[str, Any]]:
    reasons: dict[str, str] = {}
    processor, ram = cpu(reasons), memory(reasons)
    sets = processor["instruction_sets"] or []
    cores = f"{processor['model']}, {processor['usable_cores']} usable of {processor['logical_cores']} cores"
    found = [finding("cpu", "ok", f"{cores}; {' '.join(sets) or 'instruction sets unknown'}", **processor)]
    limit = ram["cgroup_limit_bytes"]
    usable_bytes = min(ram["total_bytes"], limit or ram["total_bytes"])
    limited = f", limited to {limit / 2**30:.1f} GiB by the control group" if limit else ""
    found.append(
        finding("memory", "ok", f"{ram['total_bytes'] / 2**30:.1f} GiB{limited}", usable_bytes=usable_bytes, **ram)
    )
    governor = processor["governor"]
    if governor is None:
        found.append(
            finding("frequency", "limited", f"governor not readable: {reasons['cpu.governor']}", governor=None)
        )
    elif governor == "performance":
        found.append(finding("frequency", "ok", "governor performance", governor=governor))
    else:
        remedy = "cpupower frequency-set -g performance"
        found.append(
            finding("frequency", "limited", f"governor {governor}: clocks move during a run", remedy, governor=governor)
        )
    load = os.getloadavg()[0]
    busy = load > 0.5 * (processor["usable_cores"] or 1)
    detail = f"load {load:.1f} on {processor['usable_cores']} cores"
    note = "timings taken now are not comparable: wait for a quiet machine"
    found.append(finding("load", "limited" if busy else "ok", detail, note if busy else "", load_1_minute=load))
    return found


def _ascend() -> list[dict[str, Any]]:
    reasons: dict[str, str] = {}
    values = ascend(reasons)
    if not values["cards"]:
        detail = f"not measured: {reasons['ascend.cards']}"
        return [finding("ascend", "missing", detail, "device: cpu works without one", **values, reasons=reasons)]
    versions = ", ".join(f"{k} {values[k] or 'unknown'}" for k in ("driver", "firmware", "cann"))
    state: State = "ok" if values["cann"] else "limited"
    return [finding("ascend", state, f"{len(values['cards'])} cards; {versions}", **values, reasons=reasons)]


def _mindspore(probe: dict[str, Any]) -> list[dict[str, Any]]:
    version = package_version("mindspore")
    if probe.get("error"):
        remedy = (
            "pip install 'mindspore>=2.7' 'numpy<2'"
            if version is None
            else "see the error; MindSpore needs numpy below 2"
        )
        return [
            finding("mindspore", "missing", f"{version or 'not installed'}: {probe['error']}", remedy, version=version)
        ]
    devices = ", ".join(probe["devices"])
    found = [finding("mindspore", "ok", f"{probe['version']}, devices: {devices}", **probe)]
    if probe["counter_bytes"]:
        found.append(finding("device memory", "ok", "allocated and reserved peaks are counted"))
    else:
        detail = "not measured: the CPU backend returns 0 for every counter; records hold the process's resident peak"
        found.append(finding("device memory", "limited", detail))
    isa, kernel = probe["isa"], probe["convolution"]
    if kernel is None:
        return [*found, finding("convolution", "limited", "not measured: oneDNN printed no kernel", isa=isa)]
    slow = "ref" in kernel
    detail = f"oneDNN on {isa or 'unknown ISA'} uses kernel {kernel}" + (" (about 100x slower)" if slow else "")
    remedy = (
        "none needed: core.ops has kernels of its own, and without a compiler the runner sets ONEDNN_MAX_CPU_ISA=AVX2"
        if slow
        else ""
    )
    return [*found, finding("convolution", "limited" if slow else "ok", detail, remedy, isa=isa, kernel=kernel)]


def _video(probe: dict[str, Any]) -> list[dict[str, Any]]:
    if probe.get("error"):
        return [finding("video", "missing", f"the probe failed: {probe['error']}", "pip install av", **probe)]
    found = []
    for name in ("av", "decord"):
        version, error = probe[name], probe[f"{name}_error"]
        if version:
            found.append(finding(name, "ok", version))
            continue
        remedy = "pip install av" if name == "av" else "optional: PyAV reads the same files"
        found.append(finding(name, "missing", error, remedy))
    codecs = probe["codecs"]
    absent = [c for c, present in codecs.items() if not present]
    listed = ", ".join(f"{c} {'yes' if present else 'no'}" for c, present in codecs.items())
    if codecs:
        remedy = "another codec is used to write mp4" if absent else ""
        found.append(finding("codecs", "limited" if absent else "ok", listed, remedy, **codecs))
    tool = shutil.which("ffmpeg")
    detail = tool or "no ffmpeg program: not needed, PyAV brings its own libraries"
    return [*found, finding("ffmpeg", "ok", detail, path=tool)]


def _simulation() -> dict[str, Any]:
    level = os.environ.get("MS_SIMULATION_LEVEL")
    if level is None:
        return finding("simulation", "ok", "MS_SIMULATION_LEVEL is not set")
    return finding(
        "simulation", "limited", f"MS_SIMULATION_LEVEL={level}: cogbench run refuses", "unset MS_SIMULATION_LEVEL"
    )


def _roofline(preset: str) -> dict[str, Any]:
    # As for a process whose work is the transformer: AVX-512 where the processor has it.
    env = full_environment({"kind": "train", "runtime": {"device": "cpu"}}, code_root())
    found = _answer([sys.executable, "-m", "bench.roofline", preset], env)
    if found.get("error"):
        return finding("roofline", "missing", f"not measured: {found['error']}", **found)
    rates = ", ".join(
        f"{s['rows']}x{s['inner']}x{s['columns']} {s['flops_per_second'] / 1e9:.1f}" for s in found["shapes"]
    )
    best = found["peak_flops_per_second"] / 1e9
    detail = f"{best:.1f} GFLOP/s in {found['dtype']} on the shapes of {preset} (GFLOP/s: {rates})"
    return finding("roofline", "ok", detail, **found)


def _probe(name: str, env: dict[str, str]) -> dict[str, Any]:
    """What ``bench.doctor_probe NAME`` printed last as JSON, or {"error": why}."""
    assert name in PROBES, name
    return _answer([sys.executable, "-m", "bench.doctor_probe", name], env, verbose=name == "mindspore")


def _answer(command: list[str], env: dict[str, str], *, verbose: bool = False) -> dict[str, Any]:
    """The JSON that ``command`` printed last; ``verbose``: with what oneDNN said."""
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_PROBE_SECONDS} s"}
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"probe"')]
    if done.returncode != 0 or not answers:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"exit code {done.returncode}: {last}"}
    return json.loads(answers[-1]) | (onednn(done.stdout) if verbose else {})


def onednn(text: str) -> dict[str, str | None]:
    """ISA and forward convolution kernel in the output of a process run with ONEDNN_VERBOSE=1."""
    isa = kernel = None
    for line in text.splitlines():
        fields = line.split(",")
        if not fields[0].startswith("onednn_verbose") and not fields[0].startswith("dnnl_verbose"):
            continue
        isa = next((f.removeprefix("isa:") for f in fields if f.startswith("isa:")), isa)
        if "convolution" in fields and "exec" in fields:
            kernel = fields[fields.index("convolution") + 1]
    return {"isa": isa, "convolution": kernel}
