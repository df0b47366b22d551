"""The rules of train recipes, and the values of the shipped ones."""

from __future__ import annotations

from typing import Any

import pytest

from recipes.load import from_dict, load_recipe
from recipes.problems import RecipeErrors
from recipes.support import unsupported
from tests.recipes.helpers import minimal
from tests.recipes.test_shipped import FOLDER, values

BUCKET = {"frames": 77, "height": 768, "width": 1360}
ONLINE = {"csv": "a.csv", "encode": "online", "video_folder": "v"}
HELD = {"csv": "h.csv", "text_embed_folder": "t", "video_embed_folder": "v", "every": 10}
PRESET = {"path": None, "preset": "1.5-5b"}
LORA = {"rank": 4, "alpha": 4.0}


def train(**sections: Any) -> dict[str, Any]:
    """The smallest train recipe with these values merged in."""
    data = minimal("train")
    for section, given in sections.items():
        old = data.get(section)
        data[section] = {**old, **given} if isinstance(old, dict) and isinstance(given, dict) else given
    return data


def in_buckets(*buckets: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A train recipe with buckets in place of one size."""
    data = train(**{key: value for key, value in more.items() if key != "video"})
    data["video"] = {"buckets": list(buckets), "max_crop": 0.2, **more.get("video", {})}
    return data


AT_ONCE = {"optimizer_in_backward": True, "max_grad_norm": None}


@pytest.mark.parametrize(
    ("data", "key", "words"),
    [
        (in_buckets(BUCKET, video={"height": 64}), "video.height", "together with buckets"),
        (in_buckets(BUCKET, video={"max_crop": None}), "video.max_crop", "missing"),
        (in_buckets(BUCKET, BUCKET), "video.buckets.1", "twice"),
        (in_buckets({**BUCKET, "frames": 78}), "video.buckets.0.frames", "got 78, need 4n+1"),
        (in_buckets(BUCKET, train={"batch_size": 2}), "train.batch_size", "set batch_size in each bucket"),
        (in_buckets(BUCKET, video={"latent_frames": 20}), "video.latent_frames", "write null"),
        (
            in_buckets({**BUCKET, "frames": 81}, model=PRESET, train={"odd_latents": "refuse"}),
            "video.buckets.0.frames",
            "21 latent frames, need an even number",
        ),
        (train(video={"height": None}), "video.height", "missing, need height, width, frames or buckets"),
        (train(data={"text_embed_folder": None}), "data.text_embed_folder", "missing, need a path with data.encode"),
        (train(data={"encode": "online"}), "data.video_folder", "missing, need a path with data.encode online"),
        (train(validation={**HELD, "video_embed_folder": None}), "validation.video_embed_folder", "missing"),
        (train(train={"horizontal_flip": True}), "train.horizontal_flip", "a flipped latent is not the latent of a"),
        (train(data=ONLINE, model={"path": None, "preset": "tiny-1.5"}), "model.preset", "a preset has no tokenizer"),
        (train(data=ONLINE, model={"path": None, "transformer": "t"}), "model", "no folder of vae, text_encoder"),
        (train(train={"method": "lora"}), "lora", "missing, need {rank: 128, alpha: 64}"),
        (train(lora=LORA), "lora", "which trains every parameter"),
        (train(train={"merge_lora": True}), "train.merge_lora", "nothing to merge"),
        (train(train={"recompute_every": 2}), "train.recompute_every", "no block is computed again"),
        (
            train(train=AT_ONCE | {"gradient_accumulation_steps": 2}),
            "train.gradient_accumulation_steps",
            "got 2 with optimizer_in_backward, need 1",
        ),
        (
            train(train=AT_ONCE | {"loss_scale": {"kind": "static"}}),
            "train.loss_scale.kind",
            "an overflow is seen too late",
        ),
        (train(train=AT_ONCE | {"method": "lora"}, lora=LORA), "train.method", "need sft: a LoRA's gradients"),
        (train(train=AT_ONCE, runtime={"workers": 2}), "runtime.workers", "need 1: gradients are not summed"),
        (train(train={"keep_checkpoints": 2}), "train.keep_checkpoints", "without save_every"),
        (train(lr_schedule={"name": "cosine", "end": 1.0}), "lr_schedule.end", "need at most optimizer.lr 0.0001"),
        (train(lr_schedule={"name": "cosine", "warmup_steps": 3}), "lr_schedule.warmup_steps", "less than train.steps"),
    ],
)  # fmt: skip
def test_rules_between_fields(data, key, words):
    with pytest.raises(RecipeErrors) as caught:
        from_dict(data)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert words in problem.message


@pytest.mark.parametrize(
    "data",
    [
        in_buckets(BUCKET, {**BUCKET, "frames": 37, "batch_size": 2, "keep_probability": 0.5}),
        train(data=ONLINE, train={"horizontal_flip": True}, validation={"csv": "h", "video_folder": "v", "every": 1}),
        train(train={"method": "lora"}, lora=LORA, ema={"decay": 0.99}),
        train(train={"method": "lora"}, model={"lora": "l"}),
        train(train={"loss_scale": {"kind": "dynamic", "value": 2.0**15}}, validation=HELD),
        train(train={"recompute": "keep_attention", "recompute_every": 2}),
        train(lr_schedule={"name": "cosine_restarts", "cycles": 3, "end": 1e-6}),
    ],
)
def test_what_fits_together_is_accepted_and_runs_on_one_process(data):
    assert unsupported(from_dict(data)) == []


def test_recompute_takes_true_and_false_as_before():
    recipes: list[Any] = [from_dict(train(train={"recompute": value})) for value in (True, False)]
    assert [recipe.train.recompute for recipe in recipes] == ["all", "none"]


def test_where_a_run_begins_is_not_part_of_its_identity(tmp_path):
    import json

    from tests.recipes.helpers import load_text

    first = load_text(tmp_path, json.dumps(train()))
    assert load_text(tmp_path, json.dumps(train(train={"resume": "latest"}))).digest == first.digest
    assert load_text(tmp_path, json.dumps(train(train={"steps": 4}))).digest != first.digest


def test_came_is_supported_on_one_process_and_on_eight():
    path = FOLDER / "ascend910/sft_768x1360x77_8p.yaml"
    one = ["runtime.workers=1", "parallel.sequence_parallel=1", "parallel.zero_stage=0"]
    assert unsupported(load_recipe(path, one).recipe) == []
    assert unsupported(load_recipe(path).recipe) == []


def test_lora_has_the_values_of_thudms_trainer():
    found = values("ascend910/lora_768x1360x81.yaml")
    expected = {
        "train.method": "lora", "lora.rank": 128, "lora.alpha": 64.0, "train.loss": "x0_weighted", "video.frames": 81,
        "lora.targets": ["to_q", "to_k", "to_v", "to_out.0"], "optimizer.lr": 2e-5, "optimizer.betas": [0.9, 0.95],
        "optimizer.weight_decay": 1e-4, "lr_schedule.warmup_steps": 100, "train.odd_latents": "pad_first",
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert unsupported(load_recipe(FOLDER / "ascend910/lora_768x1360x81.yaml").recipe) == []


def test_buckets_are_of_one_area_and_need_no_padding():
    recipe: Any = load_recipe(FOLDER / "ascend910/sft_buckets_8p.yaml").recipe
    assert (recipe.parallel.sequence_parallel, recipe.optimizer.name) == (8, "came")
    for bucket in recipe.video.buckets:
        assert ((bucket.frames - 1) // 4 + 1) % 2 == 0
        assert abs(bucket.height * bucket.width / (768 * 1360) - 1) < 0.02
        assert (min(bucket.height, bucket.width) >= 768, bucket.height % 16, bucket.width % 16) == (True, 0, 0)
