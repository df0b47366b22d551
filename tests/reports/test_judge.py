"""The judge's scores in a report: counts with their intervals, joined with what made the videos; values invented."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.build import build_report
from reports.collect import Run, collect
from reports.judge import judge_plots, judge_tables, judged_runs
from tests.reports import samples


def _note(right: int, total: int) -> dict:
    entry = {"right": right, "of": total, "low": 0.123, "high": 0.124}  # the report does its own sums
    return {"judge": dict.fromkeys(("shape", "color", "motion", "all"), entry)}


def _pair(
    folder: Path, number: int, steps: int, right: int, *, total: int = 40, kind="trailing", model="@train"
) -> None:
    """Stages ``NN-sample<number>`` and ``NN-judge<number>`` below ``folder``, which refer to each other by name."""
    sampling = {"steps": steps, "timesteps": kind, "sampler": "ddim"}
    recipe = {"kind": "generate", "sampling": sampling, "model": {"path": None, "transformer": model}}
    samples.write(folder / f"{number:02d}-sample{number}", "generate", f"sample{number}", recipe=recipe)
    judge = {"kind": "judge", "videos": f"@sample{number}", "training_steps": None}
    metrics = {"judge.videos": {"value": 40.0, "unit": "videos"}}
    samples.write(
        folder / f"{number + 50:02d}-judge{number}", "judge", f"judge{number}", recipe=judge,
        notes=_note(right, 40), metrics=metrics,
    )  # fmt: skip


@pytest.fixture
def stages(tmp_path) -> Path:
    folder = tmp_path / "run" / "stages"
    samples.write(folder / "01-train", "train", "train", recipe={"kind": "train", "train": {"steps": 700}})
    for number, (steps, right) in enumerate([(4, 10), (8, 20), (16, 30)], start=2):
        _pair(folder, number, steps, right, model="@train/transformer")
    _pair(folder, 5, 8, 24, kind="linear-quadratic", model="@train/checkpoint-000350/transformer")
    return folder


def _runs(folder: Path) -> tuple[Run, ...]:
    return collect([folder]).runs


def test_a_row_has_counts_intervals_and_where_the_videos_come_from(stages):
    table = judge_tables(_runs(stages))[0]
    rows = {row[0].text: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    row = rows["judge3"]
    assert row["videos of"].text == "sample3"
    assert row["denoising steps"].sort == 8
    assert row["time steps, sampler"].text == "trailing, ddim"
    assert row["training steps"].sort == 700
    assert row["videos"].sort == 40
    assert row["shape"].text == row["all"].text == "50.0 % (35.2 to 64.8)"  # Wilson's interval of 20 of 40
    assert rows["judge5"]["training steps"].sort == 350  # the checkpoint's, not the run's


def test_plots_have_a_line_for_each_kind_and_reach_from_0_to_100(stages):
    plots = {plot.name: plot for plot in judge_plots(_runs(stages))}
    assert set(plots) == {"judge-denoising-steps"}  # no setting has two numbers of training steps
    svg = plots["judge-denoising-steps"].svg
    assert ">0<" in svg
    assert ">100<" in svg
    assert "trailing, ddim @700<" in svg
    assert "@n: after n training steps" in plots["judge-denoising-steps"].caption
    assert "40 videos a point; bars are 95 % intervals" in plots["judge-denoising-steps"].caption
    _pair(stages, 6, 8, 5, model="@train/checkpoint-000100/transformer")
    assert {plot.name for plot in judge_plots(_runs(stages))} == {"judge-denoising-steps", "judge-training-steps"}


def test_what_is_not_known_is_said_and_not_drawn(tmp_path):
    judge = {"kind": "judge", "videos": "/elsewhere/out", "training_steps": 12}
    samples.write(tmp_path / "a", "judge", "alone", recipe=judge, notes=_note(1, 2))
    samples.write(tmp_path / "b", "judge", "broken", recipe=judge, status="failed", reason="invented", notes={})
    samples.write(tmp_path / "c", "judge", "damaged", recipe=judge, notes={"judge": {"all": {"right": "x", "of": 0}}})
    runs = _runs(tmp_path)
    assert [item.training_steps for item in judged_runs(runs)] == [12, 12, 12]
    table = judge_tables(runs)[0]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["denoising steps"].text == "n/a (the generate record is not in this report)"
    assert row["videos of"].text == "/elsewhere/out"
    for other in table.rows[1:]:
        assert dict(zip(table.columns, other, strict=True))["all"].text.startswith("not measured")
    assert judge_plots(runs) == []


def test_a_page_shows_them_and_a_page_without_judges_does_not(stages, tmp_path):
    text = build_report([stages], tmp_path / "report")["html"].read_text(encoding="utf-8")
    assert "What the videos show" in text
    assert "Score and denoising steps" in text
    assert "50.0 % (35.2 to 64.8)" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    other = samples.write(tmp_path / "other", "train", "train")
    text = build_report([other], tmp_path / "second")["html"].read_text(encoding="utf-8")
    assert "What the videos show" not in text
