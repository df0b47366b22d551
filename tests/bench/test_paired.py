"""Pairs: statistics by hand, and sessions of fake sides, whose processes are real."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

import recipes
from bench import paired, record
from bench.cli import main
from bench.paired_record import write_records
from bench.paired_session import SIDES, environment_of, run_session
from bench.paired_stats import Ratio, interval_rank, over_sessions, ratio
from bench.recipe_access import open_recipe
from core.errors import UserError

CPU = Path(recipes.__file__).parent / "cpu"
FAKE: dict[str, str] = dict.fromkeys(SIDES, "tests.bench.fake_sides")


def _loaded(case: str = "vae-decode", plan: str = "", **more):
    values = [f"case={case}", "pairs=6", "warmup=1", f"description='{plan}'", *(f"{k}={v}" for k, v in more.items())]
    return open_recipe(CPU / "vae_decode.yaml", values)


def _session(tmp_path, *args, **more):
    loaded = _loaded(*args, **more)
    session = run_session(loaded.data, tmp_path, FAKE)
    command = ("cogbench", "paired", "x.yaml")
    return session, write_records(loaded, session, tmp_path, number=1, started="2000-01-01T00:00:00Z", command=command)


@pytest.mark.parametrize(
    ("count", "rank", "confidence"), [(6, 0, 1 - 2 / 64), (10, 1, 1 - 22 / 1024), (12, 2, 1 - 2 * 79 / 4096)]
)
def test_order_statistics_of_the_interval(count, rank, confidence):
    """By hand: 12 tosses fall outside of the third and the tenth with (1 + 12 + 66) / 4096 on each side."""
    assert interval_rank(count) == (rank, pytest.approx(confidence))


def test_ratio_is_of_pairs_not_of_medians():
    """A slow moment hits both sides of a pair: their ratio stays, that of the medians would not."""
    ours, theirs = [2.0, 2.0, 2.0, 8.0, 2.0, 2.0], [1.0, 1.0, 1.0, 4.0, 1.0, 1.0]
    assert ratio(ours, theirs) == Ratio(median=2.0, low=2.0, high=2.0, confidence=1 - 2 / 64, count=6)
    found = ratio([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0], [1.0] * 10)
    assert (found.median, found.low, found.high) == (5.5, 2.0, 9.0)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0] * 6, [1.0] * 7), ([1.0] * 5, [1.0] * 5), ([0.0] * 6, [1.0] * 6)])
def test_a_ratio_of_what_can_not_be_compared_is_refused(ours, theirs):
    with pytest.raises(ValueError, match="got"):
        ratio(ours, theirs)


def test_sessions_are_the_unit_where_there_are_several():
    one, two, three = (Ratio(median=m, low=0.0, high=9.0, confidence=0.97, count=6) for m in (1.0, 1.5, 1.2))
    assert over_sessions([one]) == one
    assert over_sessions([one, two, three]) == Ratio(median=1.2, low=1.0, high=1.5, confidence=0.75, count=3)


def test_two_records_of_a_session_and_the_other_side_stands_still(tmp_path):
    session, made = _session(tmp_path, "train")
    assert session.problem is None
    for side in SIDES:
        found = record.read(tmp_path / side)
        assert found == made[side]
        assert (found.status, found.name, found.kind) == ("ok", f"cpu-vae-decode.{side}", "paired")
        assert [step.tags for step in found.steps] == [("compile",), *[()] * 6]
        # 1.0 is what the fake side says when every other side's process is stopped.
        assert {step.loss for step in found.steps} == {1.0}
        assert found.memory.process_peak_bytes
        assert found.recipe_digest == made["ours"].recipe_digest
    assert {"ratio_median", "ratio_low", "ratio_high", "output_error"} <= set(made["ours"].metrics)
    assert "ratio_median" not in made["diffusers"].metrics
    assert not list(tmp_path.glob("*.log"))
    row = paired.row("x", [made])
    assert len(row) == len(paired.HEADERS)
    assert "failed" not in row


@pytest.mark.parametrize(("plan", "said"), [("differ", "did not do the same work"), ("die", "this side gives up")])
def test_a_session_that_fails_is_two_failed_records_without_a_ratio(tmp_path, plan, said):
    session, made = _session(tmp_path, plan=plan)
    assert said in (session.problem or "")
    assert {made[side].status for side in SIDES} == {"failed"}
    assert len(list(tmp_path.glob("*.log"))) == 2
    assert all(said in (made[side].reason or "") for side in SIDES)
    assert "ratio_median" not in made["ours"].metrics
    assert set(paired.row("x", [made])[1:]) == {"failed"}


def test_a_side_that_hangs_is_ended(tmp_path):
    session, _ = _session(tmp_path, **{"runtime.timeout_s": 0.001})
    assert "no answer" in (session.problem or "")


def test_what_helps_mindspore_s_convolutions_is_not_set_for_torch():
    """MindSpore's own convolutions need it; where ours are built neither side does."""
    data, other = _loaded().data, _loaded("transformer").data
    operators = data | {"runtime": data["runtime"] | {"kernels": "operators"}}
    assert environment_of(operators, "ours")["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    for side, recipe in (("diffusers", operators), ("diffusers", data), ("ours", other)):
        assert "ONEDNN_MAX_CPU_ISA" not in environment_of(recipe, side)


def test_a_missing_reference_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(paired, "NEEDED", ("no_such_package",))
    assert main(["paired", str(CPU), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error == ["error: the reference's side needs no_such_package: pip install 'cogbench[parity]'"]
    assert not (tmp_path / "out").exists()


def test_other_kinds_and_empty_folders_are_refused(tmp_path):
    options = {"set": [], "sessions": 1, "out": tmp_path / "out"}
    with pytest.raises(UserError, match="kind is train, need paired"):
        paired.paired_command(Namespace(recipes=[CPU.parent / "tiny" / "sft.yaml"], **options))
    with pytest.raises(UserError, match="no recipe in"):
        paired.paired_command(Namespace(recipes=[tmp_path], **options))


def test_run_sends_a_pair_to_its_own_command(capsys):
    assert main(["run", str(CPU / "transformer.yaml"), "--json"]) == 2
    assert "cogbench paired" in json.loads(capsys.readouterr().out)["error"]
