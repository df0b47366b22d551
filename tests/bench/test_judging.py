"""calibrate, compare and gate from the command line, with runs that exist; baseline files; output for CI systems."""

from __future__ import annotations

import argparse
import json
import subprocess
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from bench import baseline, calibration, cli, judging
from bench import record as records
from bench.gate import judge
from bench.gate_output import text_of, write_junit
from bench.run_set import read_runs
from bench.verdict import Check, Judgement, Policy, Verdict
from core.errors import UserError
from tests.bench.null_runs import fields_of, null_runs, null_series, run_of

_RECIPE = "schema: 1\nkind: make-clips\nname: clips\nclips: {count: 2, height: 32, width: 32, frames: 9}\n"


def _written(folder, seed, number=5, change=lambda fields: None, **noise):
    """Records of ``number`` null runs below ``folder``, each changed."""
    rng = np.random.default_rng(seed)
    for index in range(1, number + 1):
        fields = fields_of(rng, **noise)
        change(fields)
        records.write(run_of(fields, index).record, folder / f"{index:02d}")
    return folder


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe file that stands for the made-up runs."""
    record = null_runs(1, 1)[0].record
    loaded = SimpleNamespace(recipe=None, data=record.recipe, origins={}, digest=record.recipe_digest)
    monkeypatch.setattr("bench.judging.open_recipe", lambda path, overrides: loaded)
    return "made-up.yaml"


def _json(capsys, *arguments):
    code = cli.main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_from_no_baseline_to_a_pass_and_a_regression(tmp_path, recipe, capsys):
    null = _written(tmp_path / "null", 1)
    fresh = _written(tmp_path / "fresh", 2, 3)
    assert cli.main(["gate", recipe, "--from", str(fresh)]) == 3
    assert "CALIBRATION_NEEDED: cohort (this recipe has no baseline)" in capsys.readouterr().out
    assert not (tmp_path / "reports").exists(), "a new cohort never becomes its own baseline"
    code, data = _json(capsys, "gate", recipe, "--from", null, "--accept", "--why", "first")
    assert code == 0
    assert data["accepted"] == {"file": "reports/baselines/made-up.json", "why": "first"}
    code, data = _json(capsys, "gate", recipe, "--from", fresh)
    assert (code, data["verdict"], data["exit_code"]) == (0, "PASS", 0)
    assert data["baseline"]["why"] == "first"
    slow = _written(tmp_path / "slow", 3, 3, slower=1.2)
    assert cli.main(["gate", recipe, "--from", str(slow)]) == 1
    text = capsys.readouterr().out
    assert "REGRESSION: step (+" in text
    assert "interval checks share a false-alarm chance of 1 %" in text
    assert cli.main(["gate", recipe, "--from", str(slow), "--gate", "bits", "counts", "status", "bytes"]) == 0


def test_a_new_cohort_can_be_let_through_and_nothing_else(tmp_path, recipe, capsys):
    fresh = _written(tmp_path / "fresh", 2, 3)
    code, data = _json(capsys, "gate", recipe, "--from", fresh, "--new-cohort-ok")
    assert (code, data["exit_code"], data["verdict"]) == (0, 0, "CALIBRATION_NEEDED")
    null = _written(tmp_path / "null", 1)
    assert cli.main(["gate", recipe, "--from", str(null), "--accept", "--why", "first"]) == 0
    other = _written(tmp_path / "other", 2, 3, lambda f: f["environment"]["packages"].update(numpy="2.0"))
    assert cli.main(["gate", recipe, "--from", str(other)]) == 3
    assert cli.main(["gate", recipe, "--from", str(other), "--new-cohort-ok"]) == 0
    assert "nothing was judged" in capsys.readouterr().out
    slow = _written(tmp_path / "slow", 3, 3, slower=1.2)
    assert cli.main(["gate", recipe, "--from", str(slow), "--new-cohort-ok"]) == 1
    broken = _written(tmp_path / "broken", 1, 3, lambda f: f.update(status="oom", reason="killed"))
    assert cli.main(["gate", recipe, "--from", str(broken), "--new-cohort-ok"]) == 4


def test_a_baseline_moves_only_with_a_reason_and_enough_good_runs(tmp_path, recipe, capsys):
    null = _written(tmp_path / "null", 1)
    assert cli.main(["gate", recipe, "--from", str(null), "--accept"]) == 2
    assert "--why" in capsys.readouterr().err
    few = _written(tmp_path / "few", 1, 4)
    assert cli.main(["gate", recipe, "--from", str(few), "--accept", "--why", "x"]) == 2
    assert "got 4 runs, need 5" in capsys.readouterr().err
    broken = _written(tmp_path / "broken", 1, 5, lambda f: f.update(status="oom", reason="killed"))
    assert cli.main(["gate", recipe, "--from", str(broken), "--accept", "--why", "x"]) == 2
    assert "a broken run can't be a baseline" in capsys.readouterr().err
    assert not (tmp_path / "reports").exists()


def test_runs_of_several_cohorts_are_refused(tmp_path, recipe, capsys):
    _written(tmp_path / "a", 1, 3)
    mixed = _written(tmp_path / "b", 2, 3, lambda f: f["environment"]["packages"].update(numpy="2.0"))
    assert cli.main(["gate", recipe, "--from", str(tmp_path / "a"), str(mixed)]) == 2
    assert "software.packages.numpy: 1.26.4 -> 2.0: give runs of one cohort" in capsys.readouterr().err


def test_history_only_grows_and_edits_are_found(tmp_path):
    file = tmp_path / "made-up.json"
    baseline.accept(file, null_runs(1), "first")
    first = json.loads(file.read_text())["entries"]
    baseline.accept(file, null_runs(2), "a faster kernel\nby design")
    data = json.loads(file.read_text())
    assert data["entries"][:1] == first
    entries = baseline.read(file)
    assert [entry.why for entry in entries] == ["first", "a faster kernel by design"]
    found = baseline.find(entries, entries[0].cohort)
    assert found is entries[1]
    for number, change in ((0, {"why": "other"}), (1, {"why": "other"})):
        edited = json.loads(file.read_text())
        edited["entries"][number] |= change
        (tmp_path / "edited.json").write_text(json.dumps(edited))
        with pytest.raises(UserError, match="history was edited"):
            baseline.read(tmp_path / "edited.json")
    shorter = data | {"entries": data["entries"][:1]}
    (tmp_path / "shorter.json").write_text(json.dumps(shorter))
    with pytest.raises(UserError, match="history was edited"):
        baseline.read(tmp_path / "shorter.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2, "entries": []}'])
def test_a_damaged_baseline_file_is_an_error_and_not_an_empty_one(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json"):
        baseline.read(tmp_path / "x.json")


def test_a_baseline_survives_its_file(tmp_path):
    runs = null_runs(1)
    entry = baseline.accept(tmp_path / "x.json", runs, "first")
    assert baseline.read(tmp_path / "x.json") == [entry]
    assert judge(entry.series, len(entry.runs), null_runs(2, 3), Policy()).verdict is Verdict.PASS
    assert entry.cohort.key == runs[0].cohort.key


def test_calibrate_shows_spread_between_and_within(tmp_path, recipe, capsys):
    null = _written(tmp_path / "null", 1, 20, between=0.05, within=0.01)
    code, data = _json(capsys, "calibrate", recipe, "--from", null)
    step = data["readings"]["step"]
    assert code == 0
    assert 0.03 < step["between_run_sd"] < 0.07
    assert 0.007 < step["within_run_sd"] < 0.014
    assert "device allocated" in data["equal"]
    assert cli.main(["calibrate", recipe, "--from", str(null)]) == 0
    text = capsys.readouterr().out
    assert "between runs" in text
    assert "smallest visible: by a gate of 3 runs" in text
    broken = _written(tmp_path / "broken", 1, 2, lambda f: f.update(status="failed", reason="no file"))
    assert cli.main(["calibrate", recipe, "--from", str(broken)]) == 4


def test_compare(tmp_path, capsys):
    a, b = _written(tmp_path / "a", 1), _written(tmp_path / "b", 2, slower=1.2)
    code, data = _json(capsys, "compare", a, b)
    step = next(check for check in data["checks"] if check["name"] == "step")
    assert (code, data["verdict"], step["verdict"]) == (1, "REGRESSION", "REGRESSION")
    assert step["low"] < step["current"] < step["high"]
    assert step["detectable"] > 0
    assert cli.main(["compare", str(a), str(_written(tmp_path / "c", 3))]) == 0
    assert cli.main(["compare", str(a / "01"), str(b / "01")]) == 5
    assert "1 and 1 runs, need 2 on one side for an interval" in capsys.readouterr().out
    assert cli.main(["compare", str(a), str(b / "01")]) == 1, "null runs against one run"
    assert cli.main(["compare", str(a), str(tmp_path / "none")]) == 2


def test_compare_refuses_to_mix_cohorts_unless_told(tmp_path, capsys):
    a = _written(tmp_path / "a", 1)
    b = _written(tmp_path / "b", 2, 5, lambda f: f["environment"]["cpu"].update(model="Kunpeng"))
    assert cli.main(["compare", str(a), str(b)]) == 1
    assert "RECIPE_MISMATCH: hardware (hardware.cpu.model: AMD EPYC -> Kunpeng" in capsys.readouterr().out
    assert cli.main(["compare", str(a), str(b), "--across", "hardware"]) == 0


def _judged(change=lambda fields: None):
    fields = fields_of(np.random.default_rng(9))
    change(fields)
    return judge(null_series(1), 5, [run_of(fields)], Policy())


def test_junit_tells_findings_from_what_could_not_be_judged(tmp_path):
    def worse(fields):
        fields["digests"] = {"parameters": "7" * 64, "new\x01": "8" * 64}

    write_junit(tmp_path / "out" / "j.xml", _judged(worse), "sft")
    suite = ElementTree.parse(tmp_path / "out" / "j.xml").getroot()[0]
    cases = {case.get("name"): [child.tag for child in case] for case in suite}
    assert cases["digest parameters"] == ["failure"]
    assert cases["loss"] == []
    assert cases["device reserved"] == ["skipped"]
    assert cases["verdict"] == ["failure"]
    assert suite.get("failures") == "2"
    assert suite.get("tests") == str(len(cases))
    write_junit(tmp_path / "j.xml", _judged(lambda f: f.update(status="oom", reason="killed")), "sft")
    assert ElementTree.parse(tmp_path / "j.xml").getroot()[0].get("errors") == "2"


def test_the_table_names_the_phase_that_moved():
    def more(fields):
        fields["memory"]["phases"][1]["device_allocated_peak_bytes"] += 2**30

    text = text_of(_judged(more), "gate")
    moved = text.split("memory that moved most:\n")[1].splitlines()[0]
    assert moved.split() == ["+1,073,741,824", "B", "device", "allocated,", "phase", "first", "step,", "rank", "0"]
    assert "+1,073,741,824 B where all null runs agree" in text


def test_an_interval_that_bounds_nothing_shows_no_number():
    common = {"name": "step", "family": "time", "unit": "s", "verdict": Verdict.PASS, "rule": "interval"}
    wide = Check(**common, baseline=0.1, current=0.1, low=1e-15, high=2e14, detectable=1e14)
    tight = Check(**common, baseline=0.1, current=0.1, low=0.09, high=0.11, detectable=0.02)
    loose, close = (text_of(Judgement(verdict=Verdict.PASS, reason="", checks=(one,)), "gate") for one in (wide, tight))
    assert "more than 100-fold: runs differ too much" in loose
    assert "min" not in loose
    assert "90 ms .. 110 ms" in close


def test_readings_that_are_missing_for_one_reason_are_one_line(tmp_path, recipe, capsys):
    null = _written(tmp_path / "null", 1, 3)
    _, data = _json(capsys, "calibrate", recipe, "--from", null)
    data["not_measured"] = {"a": "no card", "b": "no card", "c": "no card", "d": "not asked for"}
    lines = [line for line in calibration.text_of(data).splitlines() if line.startswith("not measured: ")]
    assert lines == ["not measured: a, b and 1 more (no card)", "not measured: d (not asked for)"]


@pytest.mark.parametrize(
    "arguments",
    [["gate", "x", "--alpha", "0"], ["gate", "x", "--gate", "speed"], ["calibrate", "x", "--runs", "1"]],
)
def test_wrong_arguments_exit_2(arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_gate_runs_the_recipe_and_clears_its_outputs(tmp_path, capsys):
    """For real, in child processes, without MindSpore."""
    (tmp_path / "clips.yaml").write_text(_RECIPE)
    exact = ["--gate", "status", "counts", "bits"]
    assert cli.main(["calibrate", "clips.yaml", "--runs", "5", "--out", "null"]) == 0
    assert not (tmp_path / "null" / "01" / "out").exists()
    assert cli.main(["gate", "clips.yaml", "--from", "null", "--accept", "--why", "first", *exact]) == 0
    capsys.readouterr()
    code, data = _json(capsys, "gate", "clips.yaml", "--runs", "1", *exact)
    assert (code, data["verdict"], data["new_runs"]) == (0, "PASS", 1)
    assert json.loads((tmp_path / data["folder"] / "gate.json").read_text())["verdict"] == "PASS"
    assert cli.main(["gate", "clips.yaml", "--runs", "1", "--set", "clips.count=3", *exact]) == 1
    assert "clips.count: 2 -> 3" in capsys.readouterr().out
    assert cli.main(["gate", "clips.yaml", "--out", "null"]) == 2


def test_bisect_judges_the_records_that_each_commit_makes(tmp_path, recipe, monkeypatch, capsys):
    """Commits of a made-up repository say how many bytes their program needs; today's gate judges the records."""
    folder, commits = tmp_path / "repository", []
    folder.mkdir()
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    for extra in (0, 0, 0, 4096, 4096):
        (folder / "extra.txt").write_text(f"{extra} {len(commits)}")
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        commits.append(head.stdout.strip())

    def runs(args, code, out, number):
        def change(fields):
            extra = int((code / "extra.txt").read_text().split()[0])
            fields["memory"]["phases"][2]["device_allocated_peak_bytes"] += extra

        return read_runs([_written(out, 5, number, change)])

    monkeypatch.setattr("bench.judging._runs_of_commit", runs)
    start = ["gate", recipe, "--repository", str(folder), "--bisect", commits[0]]
    assert cli.main([*start, "HEAD"]) == 2
    assert "has no baseline" in capsys.readouterr().err
    baseline.accept(baseline.file_of(baseline.FOLDER, "made-up"), read_runs([_written(tmp_path / "null", 1)]), "first")
    code, data = _json(capsys, *start, "HEAD")
    assert (code, data["first_bad"]) == (1, commits[3])
    assert cli.main([*start, commits[2]]) == 2
    assert "passes at BAD" in capsys.readouterr().err


def test_a_commit_without_cogbench_can_not_be_judged(tmp_path):
    args = argparse.Namespace(recipe=tmp_path / "clips.yaml", set=[])
    assert judging._runs_of_commit(args, tmp_path, tmp_path / "out", 1) == []


@pytest.mark.parametrize("command", [["calibrate", "clips.yaml"], ["gate", "clips.yaml"]])
def test_a_simulated_device_is_refused(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "clips.yaml").write_text(_RECIPE)
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "1")
    assert cli.main(command) == 2
    assert "MS_SIMULATION_LEVEL=1 is set" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
