"""Replay: equal runs are equal, and each kind of damage is found and named. Child processes without MindSpore."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import record as records
from bench import tensors
from bench.pipeline import run_pipeline
from bench.record import Record
from bench.replay import Comparison, Evidence, compare, environment_differences
from bench.replay_command import replay_command
from bench.runner import run_job
from core.errors import UserError
from tests.bench import jobs
from tests.bench.record_example import example_fields

VALUES: dict[str, Any] = {
    "losses": {"0": (0.5).hex(), "1": (0.25).hex(), "2": (0.125).hex()},
    "tensors": {"parameters/a.weight": [1.0, 2.0], "parameters/b.weight": [3.0], "input/x": [4.0]},
    "text": "table",
}
GROUPS = {"parameters": {name: {"dtype": "float32", "shape": [2], "sha256": name * 8} for name in ("a", "b")}}


def evidence(tensor_groups=GROUPS, **changes: Any) -> Evidence:
    return Evidence(records.make(**example_fields() | changes), tensor_groups)


def steps(**changed: dict[str, Any]) -> list[dict[str, Any]]:
    """The example's steps with ``s1={...}`` merged into step 1."""
    found = example_fields()["steps"]
    return [step | changed.get(f"s{step['index']}", {}) for step in found]


def only(comparison: Comparison) -> tuple[str, str]:
    (found,) = comparison.differences
    assert not comparison.identical
    return found.what, found.name


def test_equal_runs_are_identical_whatever_their_clocks_say():
    again = evidence(seconds=99.0, steps=steps(s1={"seconds": 7.0, "extra": {"data_seconds": 3.0}}))
    comparison = compare(evidence(), again)
    assert comparison.identical
    assert comparison.compared == {"input": 0, "step": 3, "tensor": 2, "digest": 1, "file": 1}


def test_one_flipped_bit_of_a_loss_is_found():
    flipped = float.fromhex((1.25).hex()) + 2**-52
    comparison = compare(evidence(), evidence(steps=steps(s1={"loss": flipped, "loss_hex": flipped.hex()})))
    assert only(comparison) == ("step", "step 1")
    first = comparison.first("step")
    assert first is not None
    assert (first.recorded, first.replayed) != (None, None)
    assert "0x1.4000000000000p+0" in str(first.recorded)
    assert "0x1.4000000000001p+0" in str(first.replayed)


def test_a_gradient_norm_counts_as_a_loss_does():
    old, new = (evidence(steps=steps(s2={"extra": {"grad_norm": norm}})) for norm in (0.1, 0.1 + 2**-56))
    assert only(compare(old, new)) == ("step", "step 2")


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_step_is_found_in_either_run(missing):
    short = evidence(steps=[step for step in steps() if step["index"] != missing])
    for one, two in ((evidence(), short), (short, evidence())):
        assert only(compare(one, two)) == ("step", f"step {missing}")


def test_swapped_steps_are_found():
    two, one = example_fields()["steps"][2], example_fields()["steps"][1]
    swapped = [example_fields()["steps"][0], one | {"index": 2}, two | {"index": 1}]
    assert [d.name for d in compare(evidence(), evidence(steps=swapped)).differences] == ["step 1", "step 2"]


def test_a_validation_is_a_step_of_its_own():
    check = {"index": 2, "seconds": 1.0, "loss": 0.5, "loss_hex": (0.5).hex(), "tags": ["eval"]}
    other = check | {"loss": 0.25, "loss_hex": (0.25).hex()}
    found = compare(evidence(steps=[*steps(), check]), evidence(steps=[*steps(), other]))
    assert only(found) == ("step", "step 2 (validation)")


def test_the_first_of_several_changed_tensors_is_named():
    changed = {"parameters": {n: facts | {"sha256": "f" * 64} for n, facts in GROUPS["parameters"].items()}}
    comparison = compare(evidence(), evidence(changed))
    assert [d.name for d in comparison.differences] == ["parameters/a", "parameters/b"]
    first = comparison.first("tensor")
    assert first is not None
    assert first.name == "parameters/a"


def test_a_missing_tensor_and_a_changed_shape_are_found():
    assert only(compare(evidence(), evidence({"parameters": {"a": GROUPS["parameters"]["a"]}})))[1] == "parameters/b"
    reshaped = {"parameters": GROUPS["parameters"] | {"b": GROUPS["parameters"]["b"] | {"shape": [1, 2]}}}
    assert only(compare(evidence(), evidence(reshaped))) == ("tensor", "parameters/b")


def test_other_inputs_are_told_apart_from_other_results():
    inputs = {"input/transformer": {"w": {"dtype": "float32", "shape": [1], "sha256": "1" * 64}}}
    other = {"input/transformer": {"w": {"dtype": "float32", "shape": [1], "sha256": "2" * 64}}}
    assert only(compare(evidence(inputs), evidence(other))) == ("input", "input/transformer/w")
    old, new = (evidence(digests={"input/first_batch": digit * 64}) for digit in "12")
    assert only(compare(old, new)) == ("input", "input/first_batch")


def test_changed_outputs_and_files_are_found_and_folders_do_not_matter():
    digest = evidence(digests={"parameters": "7" * 64})
    assert only(compare(evidence(), digest)) == ("digest", "parameters")
    moved = [{"kind": "checkpoint", "path": "/elsewhere/step-3", "sha256": "6" * 64}]
    assert compare(evidence(), evidence(artifacts=moved)).identical
    changed = [moved[0] | {"sha256": "8" * 64}]
    assert only(compare(evidence(), evidence(artifacts=changed))) == ("file", "step-3")


def test_a_resumed_run_is_compared_from_where_it_went_on():
    resumed = evidence(steps=steps()[1:], notes={"resumed": {"step": 1}})
    assert compare(resumed, evidence()).identical
    later = evidence(steps=steps()[2:], notes={"resumed": {"step": 1}})  # step 1 is missing, not before its start
    assert only(compare(later, evidence())) == ("step", "step 1")


def test_nothing_compared_is_not_identical():
    empty = evidence({}, steps=[], digests={}, artifacts=[])
    assert not compare(empty, empty).identical


def test_the_environment_is_explained_causes_first():
    fields = example_fields()
    changed = fields | {
        "code": fields["code"] | {"dirty": True, "digest": "9" * 64},
        "environment": fields["environment"] | {"packages": {"mindspore": "2.9.0", "numpy": "1.26.4"}},
        "notes": {"runtime": {"kernels": "operators"}},
    }
    found = environment_differences(records.make(**fields), records.make(**changed))
    assert [d["key"] for d in found] == ["code.dirty", "code.digest", "packages.mindspore", "runtime.kernels"]
    assert found[2] == {"key": "packages.mindspore", "recorded": "2.10.0", "replayed": "2.9.0"}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A finished run, made once; its recipe names the file that decides what a run computes by a relative path."""
    folder = tmp_path_factory.mktemp("original")
    with contextlib.chdir(folder):
        Path("values.json").write_text(json.dumps(VALUES))
        job = jobs.job(folder, "from_file", values="values.json", output={"folder": None}, runtime={})
        assert run_job(job).status == "ok"
    return job.run_dir


@pytest.fixture
def ran(original, tmp_path) -> tuple[Path, Path]:
    """A copy of the run in the current folder, and the file for a second run."""
    (tmp_path / "values.json").write_text(json.dumps(VALUES))
    return Path(shutil.copytree(original, tmp_path / "run")), tmp_path / "values.json"


def replayed(run: Path, out: str = "replay") -> tuple[int, dict[str, Any], str]:
    return replay_command(
        run, out=run.parent / out, command=("cogbench", "replay"), forward=False, task_module=jobs.MODULE
    )


def test_a_replay_has_the_same_bits_and_leaves_the_run_alone(ran):
    run, _ = ran
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    code, data, text = replayed(run)
    assert (code, data["verdict"]) == (0, "identical")
    assert data["compared"] == {"input": 1, "step": 3, "tensor": 2, "digest": 0, "file": 1}
    assert data["environment"] == []
    assert text.splitlines()[0] == "replay of run: IDENTICAL"
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert json.loads((run.parent / "replay" / "replay.json").read_text())["verdict"] == "identical"


@pytest.mark.parametrize(
    ("change", "what", "name"),
    [
        ({"losses": VALUES["losses"] | {"1": (0.25 + 2**-54).hex()}}, "step", "step 1"),
        ({"losses": {"0": (0.5).hex(), "1": (0.25).hex()}}, "step", "step 2"),
        ({"tensors": VALUES["tensors"] | {"parameters/b.weight": [3.0000002]}}, "tensor", "parameters/b.weight"),
        ({"tensors": VALUES["tensors"] | {"input/x": [5.0]}}, "input", "input/x"),
        ({"text": "other"}, "file", "out.txt"),
    ],
)
def test_a_run_that_computes_something_else_is_a_mismatch(ran, change, what, name):
    run, values = ran
    values.write_text(json.dumps(VALUES | change))
    code, data, text = replayed(run)
    assert (code, data["verdict"]) == (1, "different")
    assert data["first"][what]["name"] == name
    assert sum(data["differing"].values()) == 1
    assert f"first differing {what}: {name} (1 of {what}s differ)" in text
    assert "nothing that is recorded differs" in text


def rewritten(run: Path, **changes: Any) -> None:
    path = run / records.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_record_that_was_changed_is_a_mismatch(ran):
    """The damage in the record instead of the run: a flipped bit, a dropped step."""
    run, _ = ran
    data = json.loads((run / records.FILE_NAME).read_text())
    data["steps"][0]["loss_hex"] = (0.5 + 2**-53).hex()
    rewritten(run, steps=data["steps"][:2])
    code, result, _ = replayed(run)
    assert code == 1
    assert [d["name"] for d in result["differences"]] == ["step 0", "step 2"]


def test_a_changed_or_lost_tensor_file_is_refused(ran):
    run, _ = ran
    path = run / tensors.FILE_NAME
    whole = path.read_text()
    path.write_text(whole.replace("a.weight", "c.weight"))
    with pytest.raises(UserError, match="it was changed since the run"):
        replayed(run)
    path.unlink()
    with pytest.raises(UserError, match=r"the record names it: copy it"):
        replayed(run)


def test_a_replay_that_fails_is_no_mismatch(ran):
    run, values = ran
    values.unlink()
    code, data, text = replayed(run)
    assert (code, data["verdict"], data["status"]) == (4, "failed", "failed")
    assert "FileNotFoundError" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "oom", "reason": "killed"}, "got status oom, need a run that ended ok"),
        ({"id": "pipeline/train"}, "replay the pipeline's record"),
        ({"steps": [], "digests": {}, "artifacts": []}, "nothing could be compared"),
        ({"notes": {"clips": {"total": 3, "encoded": 2}}}, "encoded 2 of 3 clips"),
    ],
)
def test_records_that_cannot_be_replayed_are_refused(ran, changes, message):
    run, _ = ran
    rewritten(run, **changes)
    with pytest.raises(UserError, match=message):
        replayed(run)
    assert not (run.parent / "replay").exists()


def test_a_recipe_this_version_cannot_read_is_the_users_to_know(ran):
    run, _ = ran
    with pytest.raises(UserError, match="this version can't read its recipe"):
        replay_command(run, out=run.parent / "replay", command=(), forward=False)


def test_a_pipelines_stages_are_compared_one_by_one(tmp_path, monkeypatch):
    values = tmp_path / "values.json"
    values.write_text(json.dumps(VALUES))
    plans = [jobs.stage(name, "from_file", values=str(values)) for name in ("one", "two")]
    monkeypatch.setattr("bench.recipe_access.stage_plans", lambda loaded: plans)
    job = replace(jobs.job(tmp_path, "nothing", runtime={}), kind="pipeline")
    assert run_pipeline(job, plans)[0].status == "ok"
    code, data, _ = replayed(job.run_dir)
    assert (code, data["compared"]["tensor"]) == (0, 4)
    values.write_text(json.dumps(VALUES | {"tensors": VALUES["tensors"] | {"parameters/a.weight": [0.0, 2.0]}}))
    code, data, _ = replayed(job.run_dir, "again")
    assert (code, data["first"]["tensor"]["name"]) == (1, "one: parameters/a.weight")
    assert data["differing"]["tensor"] == 2


def test_the_tensors_are_beside_the_record_and_named_by_it(ran):
    run, _ = ran
    record: Record = records.read(run)
    groups = tensors.read(run, record.digests[tensors.FILE_NAME])
    assert list(groups) == ["parameters", "input"]
    assert groups["parameters"]["a.weight"]["shape"] == [2]
