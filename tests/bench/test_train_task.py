"""What a training run writes, counts and refuses; resuming is in ``test_train_resume``."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.plan.beside import planned
from bench.tasks import models as models_module
from bench.tasks import train_state
from core import lora as lora_module
from core import ops, weights
from core.errors import UserError
from core.train import checkpoint
from recipes.load import from_dict
from tests.bench import train_world
from tests.bench.test_train_resume import losses, run_here


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return train_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setattr(models_module, "start_mindspore", lambda runtime, seed: {})
    ops.configure(mode="pynative")


def notes(log: Path) -> dict[str, Any]:
    return {note["key"]: note["value"] for note in train_world.events(log, "note")}


def metrics(log: Path) -> dict[str, Any]:
    return {metric["name"]: metric["value"] for metric in train_world.events(log, "metric")}


def assert_held_as_planned(recipe: dict[str, Any], log: Path) -> None:
    """The bytes that the run counted are those that the plan in its record would state."""
    plan = planned(from_dict(recipe).model_dump(mode="json", by_alias=True))
    assert plan["planned"], plan
    update = plan["phases"][-1]["bytes"]
    held = notes(log)["held_bytes"]
    assert held == {name: update[name] for name in ("parameters", "gradients", "optimizer", "ema") if name in update}


def arrays(folder: Path) -> dict[str, np.ndarray]:
    model = weights.load_transformer(folder)
    return {name: weights.parameter_array(model, name) for name in model.table}


def test_validation_ema_and_waiting_are_in_the_record(world, tmp_path):
    recipe = train_world.recipe(world, train={"steps": 4, "keep_checkpoints": 1}, ema={"decay": 0.5, "warmup": False})
    recipe["validation"] = train_world.held_out(world)
    log = run_here(recipe, tmp_path / "out")
    assert_held_as_planned(recipe, log)
    assert "ema" in notes(log)["held_bytes"]
    steps = train_world.events(log, "step")
    evals = [step for step in steps if "eval" in step["tags"]]
    assert [step["index"] for step in evals] == [2, 3]
    assert all(set(step["extra"]["validation"]) == {"200", "800"} and step["extra"]["ema"] for step in evals)
    assert all(step["extra"]["clips"] == 3 for step in evals)
    assert metrics(log)["validation_loss"] == evals[-1]["loss"]
    assert 0 <= metrics(log)["data_wait_share"] < 1
    counted = [step for step in steps if not step["tags"]]
    assert {step["index"] for step in counted} == {1, 2, 3}
    waited = sum(step["extra"]["data_seconds"] for step in counted)
    assert metrics(log)["data_wait_share"] == pytest.approx(waited / sum(step["seconds"] for step in counted))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoint-000004", "latest", "transformer", "transformer_ema",
    ]  # fmt: skip
    plain, averaged = arrays(tmp_path / "out" / "transformer"), arrays(tmp_path / "out" / "transformer_ema")
    start = arrays(world / "model")
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert np.abs(averaged[name] - start[name]).mean() < np.abs(plain[name] - start[name]).mean()
    assert np.array_equal(averaged[name], arrays(tmp_path / "out" / "checkpoint-000004" / "ema")[name])
    names = {
        (Path(a["path"]).parent.name, Path(a["path"]).parent.parent.name) for a in train_world.events(log, "artifact")
    }
    assert {("transformer", "out"), ("transformer_ema", "out"), ("ema", "checkpoint-000004")} <= names


def test_validation_does_not_change_training(world, tmp_path):
    recipe = train_world.recipe(world, train={"steps": 2, "save_every": None})
    plain = run_here(recipe, tmp_path / "plain")
    recipe["validation"] = train_world.held_out(world, every=1)
    assert losses(run_here(recipe, tmp_path / "validated")) == losses(plain)


def test_a_lora_is_saved_loaded_and_merged(world, tmp_path):
    recipe = train_world.recipe(
        world, train={"steps": 2, "method": "lora", "merge_lora": True}, lora={"rank": 2, "alpha": 4.0}
    )
    log = run_here(recipe, tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint-000002", "latest", "lora", "transformer"]
    assert_held_as_planned(recipe, log)
    assert notes(log)["trained"]["method"] == "lora"
    assert notes(log)["trained"]["tensors"] == 8
    base = weights.load_transformer(world / "model")
    lora_module.load_lora(base, out / "lora").merge()
    merged, start = arrays(out / "transformer"), arrays(world / "model")
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert np.array_equal(weights.parameter_array(base, name), merged[name])
    assert not np.array_equal(start[name], merged[name])
    same = "transformer_blocks.0.ff.net.0.proj.weight"
    assert np.array_equal(start[same], merged[same])


def test_a_lora_can_be_trained_on_or_trained_into_the_weights(world, tmp_path):
    settings: dict[str, Any] = {
        "train": {"steps": 1, "save_every": None, "method": "lora"},
        "lora": {"rank": 2, "alpha": 4.0},
    }
    run_here(train_world.recipe(world, **settings), tmp_path / "first")
    more: dict[str, Any] = {"model": {"lora": str(tmp_path / "first" / "lora")}}
    second = train_world.recipe(world, **more, train=settings["train"])
    assert notes(run_here(second, tmp_path / "second"))["trained"]["tensors"] == 8
    full = train_world.recipe(world, **more, train={"steps": 1, "save_every": None})
    assert notes(run_here(full, tmp_path / "full"))["trained"]["tensors"] > 8
    with pytest.raises(UserError, match=r"lora: got rank 3, alpha 4, but model\.lora has rank 2, alpha 4"):
        run_here({**second, "lora": {"rank": 3, "alpha": 4.0}}, tmp_path / "third")


@pytest.mark.parametrize("csv", ["huge"])
def test_a_loss_that_is_not_finite_names_step_files_and_last_good_checkpoint(world, tmp_path, csv):
    recipe = train_world.recipe(world, csv, train={"save_every": 1, "gradient_accumulation_steps": 1})
    out = tmp_path / "out"
    with pytest.raises(FloatingPointError) as caught:
        run_here(recipe, out)
    text = str(caught.value)
    assert "\n" not in text
    assert "the batch was huge/clip1.mp4" in text
    done = len(checkpoint.checkpoints(out))
    assert text.startswith(f"step {done}: loss ")
    good = f"the last good checkpoint is {out / f'checkpoint-{done:06d}'}" if done else "there is no checkpoint"
    assert good in text
    assert not (out / "transformer").exists()


def test_parameters_that_are_not_finite_are_never_saved(world, tmp_path, monkeypatch):
    from core.optim.adamw import AdamW

    step = AdamW.step

    def poisoned(self, *args, **options):
        step(self, *args, **options)
        if self.step_count == 3:
            self.parameters[0].set_data(self.parameters[0] * float("nan"))

    monkeypatch.setattr(AdamW, "step", poisoned)
    recipe = train_world.recipe(world, train={"save_every": 1})
    with pytest.raises(FloatingPointError, match=r"step 2: the norm of the parameters is nan.*checkpoint-000002$"):
        run_here(recipe, tmp_path / "out")
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "out")] == ["checkpoint-000001", "checkpoint-000002"]


def test_a_full_disk_ends_the_run_in_one_line_and_it_can_go_on(world, tmp_path, monkeypatch):
    recipe = train_world.recipe(world, train={"steps": 4})
    save = train_state.TrainingState.exports

    def full(self):
        if self.optimizer.step_count < 4:
            return save(self)

        def fill(folder):
            folder.mkdir()
            (folder / "half.safetensors").write_bytes(b"x")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return {"transformer": fill}

    monkeypatch.setattr(train_state.TrainingState, "exports", full)
    with pytest.raises(UserError, match=r"checkpoint-000004.*No space left.*last good checkpoint.*checkpoint-000002"):
        run_here(recipe, tmp_path / "out")
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["checkpoint-000002", "latest"]
    monkeypatch.setattr(models_module, "start_mindspore", lambda runtime, seed: {})
    recipe["train"]["resume"] = "latest"
    assert set(losses(run_here(recipe, tmp_path / "out"))) == {2, 3}


def test_buckets_are_counted_and_compile_once_each(world, tmp_path):
    recipe = train_world.recipe(world, "mixed", train={"save_every": None})
    log = run_here(recipe, tmp_path / "out")
    steps = train_world.events(log, "step")
    assert {step["extra"]["bucket"] for step in steps} == {"9x32x32", "5x32x48"}
    compiled = [step["extra"]["bucket"] for step in steps if "compile" in step["tags"]]
    assert sorted(compiled) == ["5x32x48", "9x32x32"]
    per_bucket = {(s["extra"]["bucket"], s["samples"], s["frames"]) for s in steps}
    assert per_bucket == {("9x32x32", 2, 18), ("5x32x48", 4, 20)}
    assert [b["clips"] for b in notes(log)["buckets"]["buckets"]] == [2, 3]


def test_micro_batches_of_two_and_one_of_both_are_the_same_training(world, tmp_path):
    def trained(**train) -> tuple[Any, dict[str, np.ndarray]]:
        recipe = train_world.recipe(world, train={"steps": 3, "save_every": None, **train}, optimizer={"lr": 1e-4})
        name = f"out-{train['batch_size']}"
        log = run_here(recipe, tmp_path / name)
        return [step["loss"] for step in train_world.events(log, "step")], arrays(tmp_path / name / "transformer")

    (two, first), (one, second) = (trained(batch_size=n, gradient_accumulation_steps=2 // n) for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-6)
    difference = np.concatenate([(first[n] - second[n]).ravel() for n in first])
    norm = np.linalg.norm(np.concatenate([value.ravel() for value in first.values()]))
    assert np.linalg.norm(difference) / norm < 1e-6


def test_skipped_steps_are_counted(world, tmp_path, monkeypatch):
    from core.train.step import TrainStep

    finite = TrainStep._pass

    def overflowing(self, step, *arguments):
        loss, gradients = finite(self, step, *arguments)
        return loss, [gradients[0] * float("inf"), *gradients[1:]] if step == 1 else gradients

    monkeypatch.setattr(TrainStep, "_pass", overflowing)
    scale = {"kind": "dynamic", "value": 8.0}
    recipe = train_world.recipe(world, train={"steps": 3, "save_every": None, "loss_scale": scale})
    log = run_here(recipe, tmp_path / "out")
    assert notes(log)["skipped_steps"] == 1
    extras = [step["extra"] for step in train_world.events(log, "step")]
    assert [(e["skipped"], e["loss_scale"]) for e in extras] == [(False, 8.0), (True, 4.0), (False, 4.0)]


def test_feed_forwards_in_pieces_train_to_the_same_loss(world, tmp_path):
    """And count what they compute again."""
    found, flops = [], []
    for chunk in (None, 7):
        recipe = train_world.recipe(world, train={"steps": 3, "save_every": None, "feed_forward_chunk": chunk})
        steps = train_world.events(run_here(recipe, tmp_path / str(chunk)), "step")
        found.append([step["loss"] for step in steps])
        flops.append([step["extra"]["hardware_flops"] - step["extra"]["model_flops"] for step in steps])
    assert np.allclose(found[1], found[0], rtol=1e-6)
    assert all(pieces > whole for whole, pieces in zip(*flops, strict=True))


def test_the_optimiser_in_the_backward_pass_resumes_averages_and_validates(world, tmp_path):
    """A run of its own, one that goes on from its checkpoint, and one without it: the same bits."""
    train = {"steps": 3, "save_every": 2, "max_grad_norm": None, "gradient_accumulation_steps": 1}
    train["optimizer_in_backward"] = True
    recipe = train_world.recipe(world, train=train, ema={"decay": 0.5, "warmup": False})
    recipe["validation"] = train_world.held_out(world)
    log = run_here(recipe, tmp_path / "out")
    assert_held_as_planned(recipe, log)
    resumed = recipe | {"train": recipe["train"] | {"resume": str(tmp_path / "out" / "checkpoint-000002")}}
    run_here(resumed, tmp_path / "resumed")
    run_here(recipe | {"train": recipe["train"] | {"optimizer_in_backward": False}}, tmp_path / "plain")
    for part in ("transformer", "transformer_ema"):
        expected = arrays(tmp_path / "out" / part)
        for other in ("resumed", "plain"):
            found = arrays(tmp_path / other / part)
            assert {name for name in expected if not np.array_equal(expected[name], found[name])} == set(), (
                other,
                part,
            )
