"""Scores of the judge: what share of videos shows what the captions say, with 95 % intervals, as a table and plots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.judge_scores import ATTRIBUTES, wilson
from reports.collect import Run, finite
from reports.plots import MAX_RUNS, SERIES, Plot, add_legend, finished, new_figure, short_label
from reports.render import Cell, Table, missing_cell, number_cell, text_cell
from reports.tables import command_cell

SCORES = (*ATTRIBUTES, "all")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Right answers of one attribute (or ``all`` three) and the interval of their share."""

    right: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.right / self.total


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A judge's record and the generate record whose videos it looked at, where that one is in the report."""

    run: Run
    source: Run | None
    training_steps: int | None

    def score(self, name: str) -> Score | None:
        """The score of ``name``, None where no caption named it; the interval is computed anew from the counts."""
        counts = self.run.value(f"notes.judge.{name}")
        right, total = (finite((counts or {}).get(key)) for key in ("right", "of"))
        if not total or right is None:
            return None
        low, high = wilson(int(right), int(total))
        return Score(right=int(right), total=int(total), low=low, high=high)

    def setting(self, key: str) -> object:
        """A value of the source's ``sampling`` section."""
        return self.source.value(f"recipe.sampling.{key}") if self.source else None

    @property
    def timesteps(self) -> str:
        """Kind of time steps, with the sampler; for a list its length."""
        kind, sampler = self.setting("timesteps"), self.setting("sampler")
        return f"{'a list' if isinstance(kind, list) else kind}, {sampler}" if self.source else ""


def judged_runs(runs: Sequence[Run]) -> list[Judged]:
    """Every judge's record with what is known about its videos."""
    makers = {kind: _by_output(runs, kind) for kind in ("generate", "train")}
    found = []
    for run in runs:
        videos = run.value("recipe.videos")
        if run.kind != "judge" or not isinstance(videos, str):
            continue
        source = _maker(_folder(run, videos, runs), makers["generate"])
        steps = finite(run.value("recipe.training_steps"))
        if steps is None and source is not None:
            steps = _trained(source, runs, makers["train"])
        found.append(Judged(run=run, source=source, training_steps=None if steps is None else int(steps)))
    return found


def _by_output(runs: Sequence[Run], kind: str) -> dict[Path, Run]:
    return {_output(run).resolve(): run for run in runs if run.kind == kind}


def _output(run: Run) -> Path:
    stated = run.value("recipe.output.folder")
    return Path(stated) if isinstance(stated, str) else run.folder / "out"


def _folder(run: Run, path: str, runs: Sequence[Run]) -> Path:
    """A path of a recipe; ``@stage/rest`` is in the output folder of a stage beside this one."""
    if not path.startswith("@"):
        return Path(path)
    name, _, rest = path[1:].partition("/")
    for other in runs:
        number, _, stage = other.folder.name.partition("-")
        if number.isdecimal() and stage == name and other.folder.parent == run.folder.parent:
            return _output(other) / rest
    return Path(path)


def _maker(folder: Path, by_output: dict[Path, Run]) -> Run | None:
    """The run in whose output folder this folder is, or which it is."""
    path = folder.resolve()
    return next((by_output[place] for place in (path, *path.parents) if place in by_output), None)


def _trained(source: Run, runs: Sequence[Run], trains: dict[Path, Run]) -> float | None:
    """Training steps of the transformer that made the videos: its checkpoint's number, or those of its train run."""
    stated = source.value("recipe.model.transformer") or source.value("recipe.model.path")
    if not isinstance(stated, str):
        return None
    if match := _CHECKPOINT.search(stated):
        return float(match[1])
    train = _maker(_folder(source, stated, runs), trains)
    return train.number("recipe.train.steps") if train else None


def judge_tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """One table with a row for each judge's record; none without such records."""
    judged = judged_runs(runs)
    if not judged:
        return ()
    columns = (
        "run", "videos of", "denoising steps", "time steps, sampler", "training steps", "videos",
        *SCORES, "reproduce this",
    )  # fmt: skip
    note = (
        "Share of videos whose shape, colour, motion, or all three, are what the caption says; in brackets Wilson's "
        "95 % interval. The judge sees frames only."
    )
    return (Table("judge", "What the videos show", columns, tuple(_row(item) for item in judged), note),)


def _row(item: Judged) -> tuple[Cell, ...]:
    metric = item.run.section("metrics").get("judge.videos")
    videos = finite(metric.get("value")) if isinstance(metric, dict) else None
    unknown = missing_cell("the generate record is not in this report", applies=False)
    steps, trained = finite(item.setting("steps")), item.training_steps
    return (
        text_cell(item.run.label),
        text_cell(item.source.label) if item.source else text_cell(str(item.run.value("recipe.videos"))),
        unknown if steps is None else number_cell(steps),
        text_cell(item.timesteps) if item.source else unknown,
        missing_cell("no record says", applies=False) if trained is None else number_cell(trained),
        missing_cell("the run did not get so far") if videos is None else number_cell(videos),
        *(_score_cell(item.score(name)) for name in SCORES),
        command_cell(item.run),
    )


def _score_cell(score: Score | None) -> Cell:
    if score is None:
        return missing_cell("no caption names it, or the run did not get so far")
    text = f"{100 * score.share:.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"
    return Cell(text, score.share, "number")


def judge_plots(runs: Sequence[Run]) -> list[Plot]:
    """Scores against denoising steps and against training steps, each where at least two different values are known."""
    judged = [(item, score) for item in judged_runs(runs) if (score := item.score("all")) is not None]
    by_kind: dict[str, list[tuple[float, Score]]] = {}
    by_model: dict[str, list[tuple[float, Score]]] = {}
    several = len({item.training_steps for item, _ in judged}) > 1
    for item, score in judged:
        steps = finite(item.setting("steps"))
        # Short, because a long label loses its middle; the caption explains it.
        model = f" @{item.training_steps}" if several and item.training_steps is not None else ""
        if steps is not None:
            by_kind.setdefault(item.timesteps + model, []).append((steps, score))
        if item.training_steps is not None:
            label = f"{item.timesteps}, {steps:g}" if steps is not None else "no generate record"
            by_model.setdefault(label, []).append((item.training_steps, score))
    made = (
        _scores("judge-denoising-steps", "Score and denoising steps", "denoising steps", by_kind),
        _scores("judge-training-steps", "Score and training steps", "training steps", by_model),
    )
    return [plot for plot in made if plot is not None]


def _scores(name: str, title: str, axis: str, lines: dict[str, list[tuple[float, Score]]]) -> Plot | None:
    """One line a key of ``lines``; None unless some line has two places on the axis."""
    if not any(len({x for x, _ in points}) > 1 for points in lines.values()):
        return None
    figure, axes = new_figure(2.9)
    shown = list(lines.items())[:MAX_RUNS]
    for color, (label, points) in zip(SERIES, shown, strict=False):
        ordered = sorted(points, key=lambda point: point[0])
        x, y = [point for point, _ in ordered], [100 * score.share for _, score in ordered]
        below = [100 * (score.share - score.low) for _, score in ordered]
        above = [100 * (score.high - score.share) for _, score in ordered]
        axes.errorbar(
            x, y, yerr=[below, above], color=color, linewidth=1.4, marker="o", markersize=3.5, capsize=3,
            elinewidth=1, label=short_label(label),
        )  # fmt: skip
    axes.set_ylim(0, 100)
    axes.set_xlabel(axis)
    axes.set_ylabel("videos with all three right (%)")
    add_legend(axes, len(shown))
    totals = sorted({score.total for points in lines.values() for _, score in points})
    many = f"{totals[0]} to {totals[-1]}" if len(totals) > 1 else f"{totals[0]}"
    caption = f"Share of videos with shape, colour and motion right, {many} videos a point; bars are 95 % intervals."
    caption += " @n: after n training steps." if any(" @" in label for label, _ in shown) else ""
    caption += f" The first {MAX_RUNS} of {len(lines)} lines." if len(lines) > MAX_RUNS else ""
    return finished(name, title, caption, figure)
