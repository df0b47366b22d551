"""A run that was killed and goes on has the bits of one that never was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.context import RunContext
from bench.events import EventLog
from bench.record import Record
from bench.runner import Job, run_job
from bench.tasks import models as models_module
from bench.tasks import train
from core import ops
from core.errors import UserError
from core.train import checkpoint
from recipes.load import from_dict
from tests.bench import train_world
from tests.bench.jobs import digest_of


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return train_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def _here(monkeypatch):
    """The task in this process, where MindSpore runs already."""
    monkeypatch.setattr(models_module, "start_mindspore", lambda runtime, seed: {})
    ops.configure(mode="pynative")


class _StopError(Exception):
    """Ends a run in this process between two events."""


class _Stopping(RunContext):
    """Stops as killed after ``stop_after`` steps."""

    stop_after: int | None = None

    def step(self, index: int, *args: Any, **options: Any) -> None:
        super().step(index, *args, **options)
        if index + 1 == self.stop_after:
            raise _StopError


def run_here(recipe: dict[str, Any], out: Path, stop_after: int | None = None) -> Path:
    """Runs the task with results in ``out``; the log of its events. Stops as killed after ``stop_after`` steps."""
    out.mkdir(parents=True, exist_ok=True)
    log = out.parent / f"{out.name}-{len(list(out.parent.glob(f'{out.name}-*.jsonl')))}.jsonl"
    loaded = from_dict(recipe)
    ctx = _Stopping(loaded, out, loaded.seed, EventLog(log))
    ctx.stop_after = stop_after
    if stop_after is None:
        train.run(loaded, ctx)
    else:
        with pytest.raises(_StopError):
            train.run(loaded, ctx)
    return log


def losses(log: Path) -> dict[int, str]:
    """Loss bits by step, validations apart."""
    return {s["index"]: s["loss_hex"] for s in train_world.events(log, "step") if "eval" not in s["tags"]}


def digests(log: Path) -> dict[str, str]:
    return {d["name"]: d["value"] for d in train_world.events(log, "digest")}


VARIANTS: dict[str, dict[str, Any]] = {
    "came": {"optimizer": {"name": "came", "betas": [0.9, 0.95, 0.99], "eps": [1e-30, 1e-16]}},
    "buckets, ema, loss scale": {
        "csv": "mixed",
        "ema": {"decay": 0.9},
        "train": {"loss_scale": {"kind": "dynamic", "value": 64.0, "window": 2}, "timesteps": "uniform_per_rank"},
        "lr_schedule": {"name": "cosine", "warmup_steps": 2},
    },
    "bf16 beside masters, ema": {"runtime": {"mode": "pynative", "dtype": "bf16"}, "ema": {"decay": 0.9}},
    "lora, ema": {"train": {"method": "lora"}, "lora": {"rank": 2, "alpha": 4.0}, "ema": {"decay": 0.9}},
}


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_stopped_run_goes_on_with_the_same_bits(world, tmp_path, name):
    recipe = train_world.recipe(world, **VARIANTS[name])
    whole = run_here(recipe, tmp_path / "whole")
    assert len(losses(whole)) == 6
    assert len(set(losses(whole).values())) == 6
    run_here(recipe, tmp_path / "out", stop_after=3)
    recipe["train"]["resume"] = "latest"
    rest = run_here(recipe, tmp_path / "out")
    (note,) = [n["value"] for n in train_world.events(rest, "note") if n["key"] == "resumed"]
    assert note["step"] == 2
    assert losses(rest) == {step: loss for step, loss in losses(whole).items() if step >= 2}
    assert digests(rest) == digests(whole)
    assert ("ema" in digests(whole)) == ("ema" in recipe)


@pytest.mark.usefixtures("_here")
def test_every_checkpoint_leads_to_the_same_end_and_steps_may_be_added(world, tmp_path):
    recipe = train_world.recipe(world)
    whole = run_here(recipe, tmp_path / "whole")
    shorter = train_world.recipe(world, train={"steps": 4})
    run_here(shorter, tmp_path / "short")
    recipe["train"]["resume"] = str(tmp_path / "short" / "checkpoint-000004")
    rest = run_here(recipe, tmp_path / "longer")
    assert losses(rest) == {step: losses(whole)[step] for step in (4, 5)}
    recipe["train"]["resume"] = "latest"
    nothing_left = run_here(recipe, tmp_path / "longer")
    assert losses(nothing_left) == {}
    assert digests(nothing_left) == digests(rest) == digests(whole)
    (share,) = train_world.events(nothing_left, "metric")
    assert share["reason"] == "no step after the compiled ones"


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    """The output folder of a run that stopped after step 3."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models_module, "start_mindspore", lambda runtime, seed: {})
        ops.configure(mode="pynative")
        run_here(train_world.recipe(world), out, stop_after=3)
    return out


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"optimizer": {"lr": 2e-2}}, r"optimizer\.lr was 0\.01 and is 0\.02"),
        ({"seed": 3, "train": {"text_drop_prob": 0.2}}, r"seed was 0 and is 3; train\.text_drop_prob was 0\.1 and is"),
        ({"ema": {"decay": 0.9}}, r"ema\.decay was absent and is 0\.9"),
        ({"train": {"steps": 1}}, r"2 steps are done, train\.steps is 1: raise it"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_recipe_is_refused_by_name(world, stopped, changed, words):
    recipe = train_world.recipe(world, **changed)
    recipe["train"]["resume"] = "latest"
    with pytest.raises(UserError, match=words) as caught:
        run_here(recipe, stopped)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_here")
def test_more_steps_with_a_falling_schedule_are_another_run(world, tmp_path):
    falling: dict[str, Any] = {"lr_schedule": {"name": "linear"}}
    run_here(train_world.recipe(world, **falling), tmp_path / "out", stop_after=3)
    recipe = train_world.recipe(world, **falling, train={"steps": 8, "resume": "latest"})
    with pytest.raises(UserError, match=r"train\.steps was 6 and is 8 \(with a schedule that falls"):
        run_here(recipe, tmp_path / "out")


@pytest.mark.usefixtures("_here")
def test_changed_data_are_noticed(tmp_path):
    world = train_world.make_world(tmp_path / "world")
    recipe = train_world.recipe(world)
    run_here(recipe, tmp_path / "out", stop_after=3)
    recipe["train"]["resume"] = "latest"
    train_world.make_caches(world, ["square"] * 5, huge=0)
    train_world.make_caches(world, ["square"] * 5, huge=1)
    csv = Path(recipe["data"]["csv"])
    swapped = csv.read_text().replace("clip0", "clipX").replace("clip1", "clip0").replace("clipX", "clip1")
    with pytest.raises(UserError, match="the caches of step 1 are not those that were trained on"):
        for clip in (world / "video").rglob("clip*.npz"):
            clip.write_bytes((world / "video" / "held" / "clip2.npz").read_bytes())
        run_here(recipe, tmp_path / "out")
    csv.write_text(swapped)
    with pytest.raises(UserError, match=r"data\.csv names other videos"):
        run_here(recipe, tmp_path / "out")


@pytest.mark.usefixtures("_here")
def test_nothing_is_overwritten_by_mistake(world, tmp_path):
    recipe = train_world.recipe(world, train={"save_every": 1})
    run_here(recipe, tmp_path / "out", stop_after=3)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"holds checkpoint-000002 of an earlier run.*train\.resume: latest"):
        run_here(recipe, tmp_path / "out")
    recipe["train"]["resume"] = str(tmp_path / "out" / "checkpoint-000001")
    with pytest.raises(UserError, match="holds the later checkpoint-000002"):
        run_here(recipe, tmp_path / "out")
    recipe["train"]["resume"] = str(tmp_path / "absent")
    with pytest.raises(UserError, match=r"train\.resume: no folder .*absent"):
        run_here(recipe, tmp_path / "other")
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def run_process(recipe: dict[str, Any], folder: Path, out: Path, kill: dict[str, Any] | None) -> Record:
    """The task in a child process of its own."""
    folder.mkdir(parents=True)
    data = {"kind": "test", "name": "t", "recipe": recipe, "kill": kill, "output": {"folder": str(out)}}
    module = "tests.bench.killed_train"
    return run_job(
        Job(kind="test", name="t", data=data, digest=digest_of(data), run_dir=folder, command=(), task_module=module)
    )


def compare_with_killed(world: Path, tmp_path: Path, recipe: dict[str, Any], kills: list[dict[str, Any]]) -> None:
    """Kills the run at each point in turn, resuming after each, and compares with one that was left alone."""
    whole = run_process(recipe, tmp_path / "whole", tmp_path / "whole-out", None)
    assert whole.status == "ok", whole.reason
    bits: dict[int, str | None] = {}
    recipe = json.loads(json.dumps(recipe))
    for number, kill in enumerate([*kills, None]):
        record = run_process(recipe, tmp_path / f"part{number}", tmp_path / "out", kill)
        assert (record.status, record.signal) == (("failed", "SIGKILL") if kill else ("ok", None)), record.reason
        for step in record.steps:
            if "eval" not in step.tags:
                assert bits.setdefault(step.index, step.loss_hex) == step.loss_hex
        recipe["train"]["resume"] = "latest"
    assert bits == {s.index: s.loss_hex for s in whole.steps if "eval" not in s.tags}
    assert record.digests == whole.digests
    found = [path.name for path in checkpoint.checkpoints(tmp_path / "out")]
    assert found == [path.name for path in checkpoint.checkpoints(tmp_path / "whole-out")]


@pytest.mark.slow
def test_killed_in_the_middle_of_a_checkpoint_and_resumed_by_another_process(world, tmp_path):
    recipe = train_world.recipe(world, csv="mixed", ema={"decay": 0.9})
    compare_with_killed(world, tmp_path, recipe, [{"at": "in state", "step": 4}])
