"""The command line with real recipes: texts, JSON, exit codes. No recipe is run here with MindSpore."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import bench.run_command
from bench import cli, report_hook
from bench import record as records
from core.errors import UserError
from tests.bench.jobs import MODULE
from tests.bench.record_example import example_fields

_ROOT = Path(__file__).resolve().parents[2]
_CLIPS = """schema: 1
kind: make-clips
name: clips
clips: {count: 2, height: 32, width: 32, frames: 9}
"""
_PIPELINE = """schema: 1
kind: pipeline
name: both
report: true
stages:
  - {name: clips, kind: make-clips, clips: {count: 2, height: 32, width: 32, frames: 9}}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory with two recipes; tasks of every kind are the test's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips.yaml").write_text(_CLIPS)
    (tmp_path / "both.yaml").write_text(_PIPELINE)
    (tmp_path / "bad.yaml").write_text(
        _CLIPS.replace("count: 2", "count: -1").replace("kind: make-clips", "kind: make-clip")
    )
    return tmp_path


@pytest.fixture
def fake_tasks(monkeypatch):
    """Returns a function that makes every task do one action."""
    real = bench.run_command._job

    def use(action: str) -> None:
        def job(*arguments, **options):
            made = real(*arguments, **options | {"task_module": MODULE})
            made.data["action"] = action
            for stage in made.data.get("stages", []):
                stage["action"] = action
            return made

        monkeypatch.setattr(bench.run_command, "_job", job)
        plans = bench.run_command.stage_plans

        def acting(loaded):
            found = plans(loaded)
            for plan in found:
                plan.data["action"] = action
            return found

        monkeypatch.setattr(bench.run_command, "stage_plans", acting)

    return use


def test_check_lists_every_error_with_its_place(here, capsys):
    assert cli.main(["check", "clips.yaml", "bad.yaml", "missing.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("clips.yaml: ok (make-clips, ")
    assert "bad.yaml:2:" in err
    assert "missing.yaml" in err
    assert "Traceback" not in err


def test_check_as_json(here, capsys):
    assert cli.main(["check", "--json", "clips.yaml", "bad.yaml"]) == 2
    data = json.loads(capsys.readouterr().out)
    assert [r["ok"] for r in data["recipes"]] == [True, False]
    assert data["ok"] is False
    problem = data["recipes"][1]["problems"][0]
    assert (problem["file"], problem["line"]) == ("bad.yaml", 2)
    assert problem["message"]
    assert cli.main(["check", "clips.yaml"]) == 0


def test_show_tells_values_and_origins(here, capsys):
    assert cli.main(["show", "clips.yaml", "--set", "clips.count=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("clips.count: 5 ") and line.endswith("# --set") for line in lines)
    assert any(line.startswith("clips.height: 32 ") and line.endswith("# clips.yaml:4") for line in lines)
    assert cli.main(["show", "clips.yaml", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["recipe"]["clips"]["count"] == 2
    assert len(data["digest"]) == 64


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_a_users_error_is_one_line_and_exit_2(here, capsys, json_flag):
    assert cli.main(["report", "nowhere", *json_flag]) == 2
    out, err = capsys.readouterr()
    text = json.loads(out)["error"] if json_flag else err.removeprefix("error: ").rstrip("\n")
    assert text.startswith("nowhere: no such folder")
    assert "\n" not in text
    assert cli.main(["report", "nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["plan"], ["run", "x.yaml", "--repeats", "0"], ["run"]])
def test_wrong_usage_is_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: cogbench" in capsys.readouterr().err


@pytest.mark.parametrize(("action", "code"), [("everything", 0), ("exception", 4), ("user_error", 2)])
def test_run_prints_a_table_and_where_the_record_is(here, capsys, fake_tasks, action, code):
    fake_tasks(action)
    assert cli.main(["run", "clips.yaml"]) == code
    out, err = capsys.readouterr()
    assert err.startswith("run clips (make-clips, recipe ")
    (folder,) = (here / "runs").iterdir()
    assert f"record: runs/{folder.name}/record.json" in out
    assert "peak memory" in out
    assert ("log: " in out) is (code != 0)
    record = records.read(folder)
    assert record.command == ("cogbench", "run", "clips.yaml")
    assert record.origins["clips.count"] == "clips.yaml:4"


def test_repeats_are_fresh_processes_with_a_record_each(here, capsys, fake_tasks):
    fake_tasks("nothing")
    assert cli.main(["run", "clips.yaml", "--repeats", "2", "--out", "x", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [r["record"] for r in data["runs"]] == ["x/01/record.json", "x/02/record.json"]
    assert [records.read(here / "x" / n).repeat.index for n in ("01", "02")] == [1, 2]
    assert cli.main(["run", "clips.yaml", "--repeats", "2", "--out", "x"]) == 2
    assert "never replaced" in capsys.readouterr().err
    assert cli.main(["run", "clips.yaml", "--repeats", "2", "--set", "output.folder=o"]) == 2
    assert "each needs its own outputs" in capsys.readouterr().err


def test_the_log_is_forwarded_when_asked(here, capsys, fake_tasks):
    fake_tasks("everything")
    assert cli.main(["run", "clips.yaml", "-v", "--out", "x"]) == 0
    assert "größe ✓" in capsys.readouterr().err


def test_a_pipeline_writes_its_report_through_the_hook(here, capsys, fake_tasks, monkeypatch):
    fake_tasks("nothing")
    calls = []
    monkeypatch.setattr(
        bench.run_command, "build_report", lambda f, out, html: calls.append((f, out, html)) or out / "r.html"
    )
    assert cli.main(["run", "both.yaml", "--out", "x"]) == 0
    assert calls == [([Path("x")], Path("x"), True)]
    assert "report: x/r.html" in capsys.readouterr().out
    assert records.read(here / "x").children == ("stages/01-clips/record.json",)


def test_a_report_that_can_not_be_built_fails_the_command(here, capsys, fake_tasks, monkeypatch):
    fake_tasks("nothing")

    def broken(*_, **__):
        raise UserError("no builder")

    monkeypatch.setattr(bench.run_command, "build_report", broken)
    assert cli.main(["run", "both.yaml", "--out", "x"]) == 4
    assert "no report: no builder" in capsys.readouterr().out
    assert records.read(here / "x").status == "ok"


def test_report_prints_records_and_warns_about_damaged_ones(here, capsys):
    records.write(records.make(**example_fields()), here / "runs" / "a")
    (here / "runs" / "b").mkdir()
    (here / "runs" / "b" / "record.json").write_text("{")
    assert cli.main(["report"]) == 0
    out, err = capsys.readouterr()
    assert "tiny-sft-0f3c2a91" in out
    assert "12.8 frames/s" in out
    assert "2.28 GiB" in out
    assert err.startswith("warning: ")
    assert "damaged record" in err


@pytest.mark.parametrize("given", ["runs/a", "runs/a/record.json"])
def test_report_builds_a_page(here, capsys, given):
    records.write(records.make(**example_fields()), here / "runs" / "a")
    assert cli.main(["report", given, "--html"]) == 0
    page = Path(capsys.readouterr().out.removeprefix("report: ").strip())
    assert page.suffix == ".html"
    assert "tiny-sft" in page.read_text(encoding="utf-8")


def test_a_missing_report_package_is_explained(monkeypatch):
    entry = report_hook.OURS
    monkeypatch.setattr(
        report_hook, "OURS", type(entry)(name="build", value="no_such_package:build", group=entry.group)
    )
    with pytest.raises(UserError, match="no_such_package:build can't be loaded"):
        report_hook.build_report([], Path("x"), html=True)


def test_a_bug_is_not_reported_as_a_mismatch(here, capsys, monkeypatch):
    import bench.recipe_access

    monkeypatch.setattr(bench.recipe_access, "open_recipe", lambda *_: 1 / 0)
    assert cli.main(["check", "clips.yaml"]) == 4
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_doctor_exit_codes(monkeypatch, capsys):
    import bench.doctor

    for state, code in (("ok", 0), ("missing", 4)):
        monkeypatch.setattr(
            bench.doctor,
            "examine",
            lambda roofline, s=state: [{"name": "mindspore", "state": s, "detail": "x", "remedy": ""}],
        )
        assert cli.main(["doctor", "--json"]) == code
        assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)


def test_check_and_show_import_nothing_heavy(here):
    program = (
        "import sys; from bench.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'mindspore', 'pandas', 'jinja2', 'numpy', 'matplotlib', 'av'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    for arguments in (["check", "clips.yaml", "both.yaml"], ["show", "clips.yaml"]):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=here, env={"PYTHONPATH": str(_ROOT)}, check=False
        )
        assert done.returncode == 0, done.stderr
