"""Exports for other tools, read back."""

from __future__ import annotations

import builtins
import json
import struct
from pathlib import Path

import pytest

from bench.cli import main
from core.errors import UserError
from reports.metrics import export
from tests.reports import samples


def _events(path: Path) -> dict[tuple[str, int], tuple[float, float]]:
    """(tag, step) -> (value, time) of an event file: records of length, checksum, message, checksum."""
    from tensorboardX.proto import event_pb2

    message = vars(event_pb2)["Event"]  # protobuf makes it when it is imported
    data, found = path.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = message.FromString(data[12 : 12 + length])
        found |= {(v.tag, event.step): (v.simple_value, event.wall_time) for v in event.summary.value}
        data = data[16 + length :]
    return found


def _run(folder, **changes):
    steps = samples.steps(3)
    steps[1] |= {"extra": {"lr": 1e-4, "grad_norm": 2.5}}
    steps += [{"index": 2, "seconds": 1.0, "loss": 0.5, "loss_hex": (0.5).hex(), "tags": ("eval",)}]
    metrics = {"data_wait_share": {"value": 0.25, "unit": "1"}, "none": {"value": None, "unit": "1", "reason": "why"}}
    return samples.write(folder, "train", "invented", steps=steps, metrics=metrics, **changes)


def test_event_files(tmp_path):
    (path,) = export([_run(tmp_path / "run")], tensorboard=tmp_path / "tb")
    assert path.parent == tmp_path / "tb" / "invented"
    found = _events(path)
    start, first = 946684800.0, samples.steps(3)
    assert found["train/loss", 0] == (pytest.approx(1.2), start + 31.0)
    assert found["train/grad_norm", 1][0] == 2.5
    assert found["validation/loss", 2][0] == 0.5
    assert found["time/step_seconds", 1] == (pytest.approx(first[1]["seconds"]), start + 31.0 + first[1]["seconds"])
    assert found["time/step_seconds_excluded", 0][0] == 31.0
    assert ("time/step_seconds", 0) not in found
    assert found["throughput/samples_per_second", 1][0] == pytest.approx(2 / first[1]["seconds"])
    assert found["metrics/data_wait_share", 2][0] == 0.25
    assert ("metrics/none", 2) not in found
    assert any(tag.startswith("recipe") for tag, _ in found)


def test_a_second_export_replaces_the_first(tmp_path):
    run = _run(tmp_path / "run")
    for _ in range(2):
        export([run], tensorboard=tmp_path / "tb")
    assert len(list((tmp_path / "tb" / "invented").iterdir())) == 1


def test_json_lines_are_the_record_s_steps_and_its_end(tmp_path):
    for name in ("a", "b"):
        _run(tmp_path / name)
    paths = export([tmp_path / "a", tmp_path / "b"], jsonl=tmp_path / "out")
    assert [path.name for path in paths] == ["invented.jsonl", "invented.2.jsonl"]
    *steps, end = [json.loads(line) for line in paths[0].read_text().splitlines()]
    assert [step["type"] for step in steps] == ["step"] * 4
    assert steps[0]["loss_hex"] == (1.2).hex()
    assert (end["type"], end["status"]) == ("end", "ok")
    assert end["metrics"]["none"]["value"] is None
    assert end["null_reasons"]["memory.device_allocated_peak_bytes"] == samples.NO_DEVICE


def test_the_command(tmp_path, capsys):
    run = _run(tmp_path / "run")
    arguments = ["report", str(run), "--tensorboard", str(tmp_path / "tb"), "--jsonl", str(tmp_path / "lines")]
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["exported"]) == 2


def test_a_missing_library_and_a_file_in_the_way_are_one_line(tmp_path, monkeypatch):
    run = _run(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        export([run], jsonl=tmp_path / "file")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tensorboardX":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"cogbench\[tensorboard\]"):
        export([run], tensorboard=tmp_path / "tb", jsonl=tmp_path / "lines")
    assert not (tmp_path / "lines").exists()
