"""The gate passes an unchanged program and fires at every injected fault; expected verdicts are written out."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from bench.baseline import Baseline
from bench.cohort import cohort_of
from bench.gate import MIN_NULL_RUNS, judge, series_of
from bench.gate_output import class_rows, text_of
from bench.judging import judgement_of
from bench.readings import FAMILIES
from bench.record_parts import Load
from bench.verdict import EXIT_CODES, Policy, Verdict
from tests.bench.null_runs import ALLOCATED, RECIPE, fields_of, null_runs, null_series, run_of

_POLICY = Policy()


def _judged(change, *, policy=_POLICY, slower=1.0, number=3):
    """The judgement of ``number`` new runs, each changed by ``change(fields)``, against five null runs."""
    rng = np.random.default_rng(99)
    runs = []
    for index in range(number):
        fields = copy.deepcopy(fields_of(rng, slower=slower))
        change(fields)
        runs.append(run_of(fields, index + 1))
    return judge(null_series(1), MIN_NULL_RUNS, runs, policy)


def _nothing(fields):
    pass


def _of(judgement, verdict):
    return {check.name: check.reason or "" for check in judgement.checks if check.verdict is verdict}


def test_an_unchanged_program_passes():
    judgement = _judged(_nothing)
    assert judgement.verdict is Verdict.PASS
    assert {"loss", "digest parameters", "steps", "device allocated", "step"} <= set(_of(judgement, Verdict.PASS))
    assert EXIT_CODES[judgement.verdict] == 0


def _more_bytes(fields):
    fields["memory"]["phases"][2]["device_allocated_peak_bytes"] += 1


def _fewer_bytes(fields):
    for phase in fields["memory"]["phases"]:
        phase["device_allocated_peak_bytes"] -= 2_000_000_000
    for rank in fields["memory"]["per_rank"]:
        rank["device_allocated_peak_bytes"] -= 2_000_000_000
    fields["memory"]["device_allocated_peak_bytes"] -= 2_000_000_000


def _class_of_memory(fields):
    fields["notes"]["optimizer_state_bytes"] *= 2


def _loss_bit(fields):
    fields["steps"][7]["loss"] = np.nextafter(fields["steps"][7]["loss"], 2).item()
    fields["steps"][7]["loss_hex"] = fields["steps"][7]["loss"].hex()


def _other_digest(fields):
    fields["digests"]["parameters"] = "7" * 64


def _fewer_samples(fields):
    fields["steps"][4]["samples"] = 2


def _swapped_values_of_ranks(fields):
    a, b = fields["memory"]["per_rank"]
    key = "device_allocated_peak_bytes"
    a[key], b[key] = b[key], a[key]


def _lost_stage(fields):
    fields["stages"] = []


def _failed_input(fields):
    fields["failures"] = [{"item": "clip.mp4", "message": "moov atom not found"}]


def _one_more_file(fields):
    fields["artifacts"] = [*fields["artifacts"], {"kind": "checkpoint", "path": "out/step-9", "sha256": "6" * 64}]


@pytest.mark.parametrize(
    ("change", "verdict", "name"),
    [
        (_more_bytes, Verdict.REGRESSION, "device allocated, phase steady, rank 0"),
        (_fewer_bytes, Verdict.IMPROVED, "device allocated"),
        (_class_of_memory, Verdict.REGRESSION, "class optimizer_state"),
        (_loss_bit, Verdict.REGRESSION, "loss"),
        (_other_digest, Verdict.REGRESSION, "digest parameters"),
        (_fewer_samples, Verdict.REGRESSION, "steps"),
        (_swapped_values_of_ranks, Verdict.REGRESSION, "device allocated, rank 1"),
        (_lost_stage, Verdict.FAILED, "stage load"),
        (_failed_input, Verdict.REGRESSION, "failed inputs"),
        (_one_more_file, Verdict.REGRESSION, "artifacts"),
    ],
)
def test_a_changed_value_fires(change, verdict, name):
    judgement = _judged(change)
    assert name in _of(judgement, verdict)
    assert judgement.verdict is verdict
    assert EXIT_CODES[judgement.verdict] in (1, 4)


@pytest.mark.parametrize(("factor", "verdict"), [(1.10, Verdict.REGRESSION), (0.90, Verdict.IMPROVED)])
def test_slower_and_faster_steps_fire(factor, verdict):
    judgement = _judged(_nothing, slower=factor)
    assert "step" in _of(judgement, verdict)
    assert judgement.verdict is verdict


def test_a_change_inside_the_interval_or_below_the_floor_passes():
    assert _judged(_nothing, slower=1.01).verdict is Verdict.PASS
    quiet, rng = null_series(3, between=1e-5, within=1e-5), np.random.default_rng(4)
    runs = [run_of(fields_of(rng, between=1e-5, within=1e-5, slower=1.01)) for _ in range(3)]
    assert judge(quiet, MIN_NULL_RUNS, runs, _POLICY).verdict is Verdict.PASS
    strict = Policy(min_percent={"time": 0.5, "bytes": 0, "rss": 100})
    assert judge(quiet, MIN_NULL_RUNS, runs, strict).verdict is Verdict.REGRESSION


def _no_reading(fields):
    fields["memory"]["device_allocated_peak_bytes"] = None
    for index, rank in enumerate(fields["memory"]["per_rank"]):
        rank["device_allocated_peak_bytes"] = None
        fields["null_reasons"][f"memory.per_rank.{index}.device_allocated_peak_bytes"] = "the counters returned 0"
    fields["null_reasons"]["memory.device_allocated_peak_bytes"] = "the counters returned 0"


def _no_metric(fields):
    fields["metrics"] = {"validation_loss": {"value": None, "unit": "1", "reason": "no clips"}}


def _no_digest(fields):
    fields["digests"] = {}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_no_reading, "device allocated"),
        (_no_metric, "metric validation_loss"),
        (lambda fields: fields.update(metrics={}), "metric validation_loss"),
        (_no_digest, "digest parameters"),
        (lambda fields: fields["memory"].update(phases=[]), "device allocated, phase load, rank 0"),
    ],
)
def test_a_missing_reading_never_passes(change, name):
    judgement = _judged(change)
    assert judgement.verdict is Verdict.FAILED
    assert name in _of(judgement, Verdict.FAILED)
    assert EXIT_CODES[judgement.verdict] == 4


@pytest.mark.parametrize("value", [0, 0.0, float("nan"), float("inf"), None])
@pytest.mark.parametrize("name", ["step", "device allocated", "process peak"])
def test_a_zero_or_nan_that_reaches_the_gate_never_passes(name, value, monkeypatch):
    """The record refuses them already; the gate must not rely on that."""
    runs = null_runs(2, 3)
    series = series_of(runs)
    broken = series | {name: replace(series[name], values=(value, *series[name].values[1:]))}
    monkeypatch.setattr("bench.gate.series_of", lambda given: broken)
    judgement = judge(null_series(1), MIN_NULL_RUNS, runs, _POLICY)
    assert judgement.verdict is Verdict.FAILED
    judgement = judge(series | {name: broken[name]}, MIN_NULL_RUNS, runs, _POLICY)
    assert judgement.verdict is Verdict.FAILED
    monkeypatch.setattr("bench.gate.series_of", series_of)
    judgement = judge(null_series(1) | {name: broken[name]}, MIN_NULL_RUNS, runs, _POLICY)
    assert judgement.verdict is Verdict.CALIBRATION_NEEDED, "a baseline with a hole in it judges nothing"


def _cut(fields):
    del fields["steps"][-1]


def _reordered(fields):
    fields["steps"][3], fields["steps"][4] = fields["steps"][4], fields["steps"][3]


def _swapped_ranks(fields):
    fields["memory"]["per_rank"].reverse()


def _sum_of_ranks(fields):
    fields["memory"]["device_allocated_peak_bytes"] = sum(ALLOCATED)


def _wrong_digest(fields):
    fields["recipe_digest"] = "0" * 64


def _edited_median(fields):
    edited = run_of(copy.deepcopy(fields)).record
    fields["keep_summary"] = edited.summary.model_dump() | {"step_seconds_median": 1.0}
    fields["null_reasons"] = edited.null_reasons


def _nan_loss(fields):
    fields["steps"][5] |= {"loss": None, "loss_hex": "nan"}


def _loss_that_is_not_its_bits(fields):
    fields["steps"][5]["loss"] = 9.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_cut, "the last step is 10, need 11: the log was cut"),
        (lambda fields: fields["steps"].pop(5), "step 6 follows step 4"),
        (_reordered, "step 4 follows step 2"),
        (_swapped_ranks, "ranks are [1, 0], need 0 to 1 in order"),
        (_sum_of_ranks, "device allocated is 79000000000, the largest of its ranks is 40000000000"),
        (_wrong_digest, "recipe_digest 00000000 is not the digest of the recipe"),
        (_edited_median, "summary.step_seconds_median is 1.0, the steps give"),
        (_nan_loss, "loss is nan at step 5"),
        (_loss_that_is_not_its_bits, "step 5: loss 9.0 is not its own bits"),
    ],
)
def test_a_record_that_contradicts_itself_is_not_judged(change, reason):
    judgement = _judged(change)
    assert judgement.verdict is Verdict.FAILED
    assert reason in judgement.reason


@pytest.mark.parametrize("status", ["oom", "failed", "timeout", "unsteady", "skipped"])
def test_a_run_that_is_not_ok_fails(status):
    judgement = _judged(lambda fields: fields.update(status=status, reason="as it went"))
    assert judgement.verdict is Verdict.FAILED
    assert f"{status}: as it went" in judgement.reason


def test_one_bad_run_of_three_is_enough():
    rng = np.random.default_rng(5)
    runs = [run_of(fields_of(rng), index) for index in range(3)]
    bad = fields_of(rng)
    _loss_bit(bad)
    assert judge(null_series(1), MIN_NULL_RUNS, [*runs, run_of(bad, 4)], _POLICY).verdict is Verdict.REGRESSION


def test_too_few_null_runs_judge_nothing():
    judgement = judge(null_series(1, 4), 4, null_runs(2, 3), _POLICY)
    assert judgement.verdict is Verdict.CALIBRATION_NEEDED
    assert "4 null runs, need 5" in judgement.reason
    assert EXIT_CODES[judgement.verdict] == 3


def test_a_new_reading_asks_for_a_new_baseline():
    judgement = _judged(lambda fields: fields["digests"].update(ema="8" * 64))
    assert judgement.verdict is Verdict.CALIBRATION_NEEDED
    assert _of(judgement, Verdict.CALIBRATION_NEEDED) == {"digest ema": "not in the baseline"}


def test_what_null_runs_do_not_agree_on_is_shown_and_not_judged():
    runs = null_runs(1)
    fields = fields_of(np.random.default_rng(1))
    _other_digest(fields)
    series = series_of([*runs[:4], run_of(fields)])
    judgement = judge(series, 5, null_runs(2, 3), _POLICY)
    assert judgement.verdict is Verdict.PASS
    assert "not reproducible" in _of(judgement, Verdict.SHOWN)["digest parameters"]


def test_families_that_are_not_gated_say_what_they_would_have_said():
    policy = Policy(families=frozenset(FAMILIES) - {"time"})
    judgement = _judged(_nothing, slower=2.0, policy=policy)
    assert judgement.verdict is Verdict.PASS
    assert _of(judgement, Verdict.SHOWN)["step"].startswith("not gated, would be REGRESSION")
    assert judgement.interval_checks < _judged(_nothing).interval_checks


def test_a_gate_without_anything_to_judge_does_not_pass():
    judgement = judge({}, 5, null_runs(2, 3), Policy(families=frozenset()))
    assert judgement.verdict is Verdict.CALIBRATION_NEEDED
    assert "nothing could be judged" in judgement.reason


def _drifting(fields):
    for step in fields["steps"][8:]:
        step["seconds"] *= 1.5


def test_steps_that_have_not_settled_are_unsteady():
    judgement = _judged(_drifting)
    assert judgement.verdict is Verdict.UNSTEADY
    assert EXIT_CODES[judgement.verdict] == 5
    assert "from the first to the last third" in judgement.reason


def test_unproven_steadiness_counts_only_when_it_is_required():
    def short(fields):
        for step in fields["steps"][1:5]:
            step["tags"] = ["warmup"]

    null = series_of([run_of(fields) for fields in _shortened(1, 5, short)])
    runs = [run_of(fields) for fields in _shortened(2, 3, short)]
    assert judge(null, 5, runs, _POLICY).verdict is Verdict.PASS
    judgement = judge(null, 5, runs, Policy(require_steady=True))
    assert judgement.verdict is Verdict.UNSTEADY
    assert "too few steps" in judgement.reason


def _shortened(seed, number, change):
    rng = np.random.default_rng(seed)
    made = [fields_of(rng) for _ in range(number)]
    for fields in made:
        change(fields)
    return made


_BUSY = Load(
    window_seconds=20,
    own_cores=100,
    foreign_cores=60,
    steal_cores=0,
    logical_cores=192,
    usable_cores=192,
    disturbed=True,
)


def test_a_slow_run_on_a_machine_that_was_not_ours_is_unsteady_and_not_a_regression():
    judgement = _judged(lambda fields: fields.update(load=_BUSY), slower=1.2)
    assert judgement.verdict is Verdict.UNSTEADY
    assert "others used 60.0 cores of 192" in judgement.reason
    assert _judged(lambda fields: fields.update(load=_BUSY)).verdict is Verdict.PASS


def test_an_underpowered_gate_says_so():
    noisy = null_series(1, between=0.23)
    judgement = judge(noisy, MIN_NULL_RUNS, null_runs(2, 3, between=0.23), Policy(max_detectable_percent=10))
    assert judgement.verdict is Verdict.UNSTEADY
    assert "underpowered" in judgement.reason


def test_the_gravest_finding_gives_the_verdict():
    def both(fields):
        _loss_bit(fields)
        _drifting(fields)

    assert _judged(both).verdict is Verdict.REGRESSION


def _entry(runs):
    return Baseline(
        cohort=runs[0].cohort, recipe=runs[0].record.recipe, series=series_of(runs),
        runs=tuple(run.record.id for run in runs), accepted="", why="", commit=None, code_digest="",
    )  # fmt: skip


def _against_cohort(change):
    """The verdict of runs whose records are changed so that no baseline is of their cohort."""
    entry = _entry(null_runs(1))
    rng = np.random.default_rng(2)
    made = [fields_of(rng) for _ in range(3)]
    for fields in made:
        change(fields)
    runs = [run_of(fields, index + 1) for index, fields in enumerate(made)]
    judgement, found = judgement_of(runs, runs[0].record.recipe_digest, [entry], _POLICY)
    return judgement, found


def test_the_same_cohort_is_judged_by_its_baseline():
    judgement, found = _against_cohort(_nothing)
    assert judgement.verdict is Verdict.PASS
    assert found is not None


def test_a_silent_fallback_is_a_regression():
    judgement, found = _against_cohort(lambda fields: fields["notes"]["runtime"]["kernels"].update(gelu="composed"))
    assert judgement.verdict is Verdict.REGRESSION
    assert found is None
    assert "software.resolved.run.runtime.kernels.gelu: fast -> composed" in judgement.reason


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda f: f["environment"]["packages"].update(numpy="2.0"), "software.packages.numpy: 1.26.4 -> 2.0"),
        (lambda f: f["environment"]["cpu"].update(model="Kunpeng"), "hardware.cpu.model: AMD EPYC -> Kunpeng"),
    ],
)
def test_another_machine_or_version_needs_a_calibration_of_its_own(change, line):
    judgement, _ = _against_cohort(change)
    assert judgement.verdict is Verdict.CALIBRATION_NEEDED
    assert line in judgement.reason


def test_another_recipe_is_a_mismatch_that_names_the_change():
    from recipes.digest import digest

    other = RECIPE | {"seed": 8}
    judgement, _ = _against_cohort(lambda f: f.update(recipe=other, recipe_digest=digest(other)))
    assert judgement.verdict is Verdict.RECIPE_MISMATCH
    assert "seed: 7 -> 8" in judgement.reason
    assert EXIT_CODES[judgement.verdict] == 1


def test_the_cohort_ignores_commit_name_and_a_few_bytes_of_memory():
    fields = fields_of(np.random.default_rng(1))
    fields["environment"]["memory"] = {"total_bytes": 2**40, "cgroup_limit_bytes": 1}
    changed = copy.deepcopy(fields) | {"code": {"commit": "f" * 40, "dirty": True, "digest": "e" * 64}}
    changed["environment"]["memory"]["total_bytes"] += 2**20
    assert cohort_of(run_of(fields).parts).key == cohort_of(run_of(changed).parts).key


def _with_classes(fields, optimizer=8_000_000_000):
    held = {"parameters": 2_000_000_000, "optimizer": 8_000_000_000}
    phases = [{"name": "optimiser update", "total": 10_000_000_000, "bytes": held}]
    plan = {"planned": True, "phases": phases}
    fields["notes"] |= {"plan": plan, "held_bytes": held | {"optimizer": optimizer}}


def _classes_judged(optimizer):
    rng = np.random.default_rng(5)
    runs = []
    for index in range(MIN_NULL_RUNS + 3):
        fields = copy.deepcopy(fields_of(rng))
        _with_classes(fields, optimizer if index >= MIN_NULL_RUNS else 8_000_000_000)
        runs.append(run_of(fields, index + 1))
    return judge(series_of(runs[:MIN_NULL_RUNS]), MIN_NULL_RUNS, runs[MIN_NULL_RUNS:], _POLICY)


def test_the_class_that_moved_stands_beside_its_plan():
    judgement = _classes_judged(8_000_000_000 + 4096)
    assert judgement.verdict is Verdict.REGRESSION
    rows = {row[0]: row[4:] for row in class_rows(judgement.checks)}
    assert rows == {"parameters": ("+0 B", "+0 B"), "optimizer": ("+4,096 B", "+4,096 B")}
    assert "memory by class" in text_of(judgement, "made-up")
    assert _classes_judged(8_000_000_000).verdict is Verdict.PASS
