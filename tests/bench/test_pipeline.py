"""Stages in order, references between them, skipping, stopping, and the pipeline's own record."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bench import record as records
from bench.pipeline import run_pipeline
from bench.runner import exit_code_of
from tests.bench.jobs import job, stage


def _job(tmp_path: Path, **runtime):
    origins = {"stages.b.action": "p.yaml:7", "name": "p.yaml:1"}
    return dataclasses.replace(job(tmp_path, "", runtime=runtime), kind="pipeline", name="p", origins=origins)


def test_a_later_stage_reads_what_an_earlier_one_wrote(tmp_path):
    said: list[str] = []
    stages = [
        stage("unused", "exception", skipped=True),
        stage("a", "write_to", text="from a"),
        stage("b", "read_from", data={"csv": "@a/result.txt"}),
    ]
    parent, parts = run_pipeline(_job(tmp_path), stages, announce=said.append)
    assert said == ["[1/3] unused (encode-video): skipped", "[2/3] a (encode-video)", "[3/3] b (encode-video)"]
    assert [p.status for p in parts] == ["skipped", "ok", "ok"]
    assert parent.status == "ok"
    assert exit_code_of(parent) == 0
    assert parts[2].notes == {"read": "from a"}
    assert parts[2].recipe["data"] == {"csv": "@a/result.txt"}, "the record keeps the reference, not this run's path"
    assert parts[2].recipe_digest == stages[2].digest
    assert parts[2].origins == {"action": "p.yaml:7"}
    assert parent.children == ("stages/01-unused/record.json", "stages/02-a/record.json", "stages/03-b/record.json")
    assert [records.read(tmp_path / "run" / child) for child in parent.children] == parts
    assert [s.name for s in parent.stages] == ["a", "b"]
    peaks = [p.memory.process_peak_bytes or 0 for p in parts[1:]]
    assert parent.memory.process_peak_bytes == max(peaks), "stages run one after another: the largest, not the sum"
    assert parts[2].id == "run/b"
    assert parts[2].name == "p/b"


def test_a_skipped_stage_has_a_record_that_says_why(tmp_path):
    _, (skipped,) = run_pipeline(_job(tmp_path), [stage("unused", "exception", skipped=True)])
    assert (skipped.status, skipped.seconds, skipped.exit_code) == ("skipped", None, None)
    assert skipped.reason == "it is marked only_if_used and nothing that runs refers to it"
    assert (
        skipped.null_reasons["seconds"] == skipped.null_reasons["memory.process_peak_bytes"] == "the stage was skipped"
    )


def test_it_stops_at_the_first_stage_that_is_not_ok(tmp_path):
    stages = [stage("a", "failed_rows"), stage("b", "write_to")]
    parent, parts = run_pipeline(_job(tmp_path), stages)
    assert [p.status for p in parts] == ["failed"]
    assert parent.reason == "stage a: 2 inputs could not be processed (see failures)"
    assert len(parent.failures) == 2
    assert exit_code_of(parent) == 4
    assert not (tmp_path / "run" / "stages" / "02-b").exists()


def test_the_users_mistake_in_a_stage_is_the_pipelines_exit_code(tmp_path):
    parent, _ = run_pipeline(_job(tmp_path), [stage("a", "user_error")])
    assert (parent.status, exit_code_of(parent)) == ("failed", 2)
    assert (parent.log_tail or "").startswith("error: data.csv")


def test_the_pipelines_timeout_is_for_all_stages_together(tmp_path):
    parent, parts = run_pipeline(_job(tmp_path, timeout_s=1.5), [stage("a", "nothing"), stage("b", "sleep")])
    assert [p.status for p in parts] == ["ok", "timeout"]
    assert parent.status == "timeout"
    assert (parent.reason or "").startswith("stage b: stopped after")
