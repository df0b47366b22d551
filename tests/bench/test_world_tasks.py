"""The tiny world's tasks in this process: make-clips with a hold-out, train-vae, a model of given parts, captions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest

from bench.tasks import generate, make_clips, make_model, train_vae
from core import weights
from core.data import shapes
from core.data.manifest import read_manifest
from core.data.video import VideoReader
from core.errors import UserError
from core.presets import PRESETS
from core.train import vae_start
from core.vae.model import AutoencoderKLCogVideoX
from tests.bench.task_runs import run_task

SIZE = {"height": 16, "width": 32}
TINY = PRESETS["tiny-1.5"]
SMALL_VAE = replace(TINY.vae, block_out_channels=(4, 4, 4, 8), norm_num_groups=2)


pytestmark = pytest.mark.usefixtures("mindspore_runs")


def run(task, recipe: dict, out: Path) -> list[dict]:
    """The task's events."""
    return run_task(task, recipe, out)[1]


def named(events: list[dict], kind: str, key: str = "name") -> dict[str, dict]:
    return {event[key]: event for event in events if event["type"] == kind}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A small VAE with random weights and two data sets."""
    root = tmp_path_factory.mktemp("world")
    weights.save_vae(AutoencoderKLCogVideoX(SMALL_VAE).initialize(0), root / "start")
    for name, seed in (("train", 0), ("other", 1)):
        clips = [shapes.draw_clip(seed, i) for i in range(3)]
        shapes.write_clips(root / name, clips, frames=11, fps=8, **SIZE)
    return root


def table(folder: Path) -> dict:
    return {"csv": str(folder / "video_caption.csv"), "video_folder": str(folder)}


def vae_recipe(world: Path, **more) -> dict:
    recipe = {"kind": "train-vae", "model": {"vae": str(world / "start")}, "data": table(world / "train")}
    recipe |= {"video": {**SIZE, "frames": 9}, "train": {"steps": 2, "batch_size": 2}, "optimizer": {"lr": 1e-2}}
    return recipe | more


def test_make_clips_writes_one_part(tmp_path):
    clips = {"count": 9, "frames": 3, **SIZE, "hold_out": 4, "hold_out_seed": 1}
    seen = {}
    for part in ("train", "held_out"):
        events = run(make_clips, {"kind": "make-clips", "clips": {**clips, "part": part}}, tmp_path / part)
        captions = {row.caption for row in read_manifest(tmp_path / part / "video_caption.csv")}
        seen[part] = {caption.rsplit(" on a ", 1)[0] for caption in captions}
        assert len(named(events, "note", "key")["combinations"]["value"]) == {"train": 56, "held_out": 4}[part]
    assert len(seen["held_out"]) == 4
    assert not seen["train"] & seen["held_out"]


def test_train_vae_writes_a_vae_that_moved_with_its_own_scaling_factor(world, tmp_path):
    events = run(train_vae, vae_recipe(world, validation=table(world / "other")), tmp_path / "out")
    steps = [event for event in events if event["type"] == "step"]
    assert [step["index"] for step in steps] == [0, 1]
    assert {step["samples"] for step in steps} == {2}
    assert all({"reconstruction", "kl", "grad_norm", "lr", "data_seconds"} <= set(step["extra"]) for step in steps)
    start, vae = weights.load_vae(world / "start"), weights.load_vae(tmp_path / "out")
    for side in ("encoder.conv_in.conv.weight", "decoder.conv_out.conv.weight"):
        assert not np.array_equal(weights.parameter_array(start, side), weights.parameter_array(vae, side))
    assert named(events, "digest")["parameters"]["value"] == weights.parameter_digest(vae)
    # The stated factor brings the training clips' latents to a deviation of 1.
    means = []
    for row in read_manifest(world / "train" / "video_caption.csv"):
        with VideoReader(world / "train" / row.video, "pyav") as reader:
            pixels = reader.read()[:9].transpose(3, 0, 1, 2) / np.float32(127.5) - 1
        means.append(vae.encode(ms.Tensor(pixels[None].astype(np.float32)))[0].asnumpy())
    assert float(np.std(means)) * vae.config.scaling_factor == pytest.approx(1, abs=1e-3)
    assert vae.config.scaling_factor == float(f"{vae.config.scaling_factor:.4g}") != SMALL_VAE.scaling_factor
    assert named(events, "metric")["psnr_held_out"]["unit"] == "dB"
    videos = [event for event in events if event["type"] == "artifact" and event["kind"] == "video"]
    assert len(videos) == 3
    assert all("original and reconstruction" in video["meta"]["prompt"] for video in videos)
    with VideoReader(videos[0]["path"], "pyav") as reader:
        assert reader.read().shape == (9, 16, 64, 3)


def test_the_noise_of_the_latents_starts_where_the_recipe_says():
    vae = AutoencoderKLCogVideoX(PRESETS["tiny-1.5"].vae).initialize(0)
    video = ms.Tensor(np.random.default_rng(0).uniform(-1, 1, (1, 3, 1, 16, 16)).astype(np.float32))
    bias = next(p for p in vae.get_parameters() if p.name == "encoder.conv_out.conv.bias").asnumpy().copy()
    mean, logvar = (part.asnumpy() for part in vae.posterior(video))
    vae_start.set_logvar(vae, -6.0)
    same, lower = (part.asnumpy() for part in vae.posterior(video))
    np.testing.assert_array_equal(same, mean)
    moved = (-6.0 - bias[len(bias) // 2 :]).reshape(1, -1, 1, 1, 1)
    np.testing.assert_allclose(lower - logvar, np.broadcast_to(moved, logvar.shape), atol=1e-5)


def test_without_validation_the_metric_says_that_it_saw_training_clips(world, tmp_path):
    recipe = vae_recipe(world, train={"steps": 1, "reconstruction": "l2", "statistics_clips": 1})
    metrics = named(run(train_vae, recipe, tmp_path / "out"), "metric")
    assert "psnr_training_clips" in metrics
    assert "psnr_held_out" not in metrics


def test_train_vae_refuses_published_sizes_before_it_reads_weights(world, tmp_path):
    with pytest.raises(UserError, match=r"model\.preset: got a VAE of 215,\d+,\d+ parameters, train-vae is for tiny"):
        run(train_vae, vae_recipe(world, model={"preset": "5b"}), tmp_path / "a")
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PRESETS["5b"].vae.to_dict()))
    with pytest.raises(UserError, match=r"got a VAE of 215,\d+,\d+ parameters"):
        run(train_vae, vae_recipe(world, model={"vae": str(folder)}), tmp_path / "b")
    broken = {**table(world / "train"), "video_folder": str(tmp_path / "none")}
    with pytest.raises(UserError, match=r"video_folder: no such folder"):
        run(train_vae, vae_recipe(world, data=broken), tmp_path / "c")


def test_psnr_by_hand():
    black = np.zeros((1, 2, 2, 3), np.uint8)
    assert train_vae.psnr(black, black + 255) == 0
    assert train_vae.psnr(black, black + 51) == pytest.approx(10 * np.log10(25))
    assert train_vae.psnr(black, black) > 80


def make(out: Path, **more) -> list[dict]:
    return run(make_model, {"kind": "make-model", "model": {"preset": "tiny-1.5", "init_seed": 1}, **more}, out)


def test_a_model_of_given_and_drawn_parts(tmp_path):
    config = replace(TINY.vae, scaling_factor=0.5)
    weights.save_vae(AutoencoderKLCogVideoX(config).initialize(7), tmp_path / "trained" / "vae")
    plain_events = make(tmp_path / "plain")
    parts = {"vae": str(tmp_path / "trained"), "tokenizer": str(tmp_path / "plain")}
    events = make(tmp_path / "mixed", components=parts, runtime={"dtype": "bf16"})
    assert weights.load_vae(tmp_path / "mixed").config.scaling_factor == 0.5
    assert weights.load_vae(tmp_path / "mixed").source_types == {"BF16": len(AutoencoderKLCogVideoX(config).table)}
    given, kept = (weights.load_vae(tmp_path / name, "bf16") for name in ("trained", "mixed"))
    assert weights.parameter_digest(given) == weights.parameter_digest(kept)
    drawn, same = (weights.load_transformer(tmp_path / name, "bf16") for name in ("plain", "mixed"))
    assert weights.parameter_digest(drawn) == weights.parameter_digest(same)
    for file in (tmp_path / "plain" / "tokenizer").iterdir():
        assert (tmp_path / "mixed" / "tokenizer" / file.name).read_bytes() == file.read_bytes()
    assert named(events, "note", "key")["vae"]["value"]["from"] == parts["vae"]
    assert named(plain_events, "note", "key")["vae"]["value"]["from"] == "drawn"


def test_parts_of_different_models_are_refused(world, tmp_path):
    other = replace(SMALL_VAE, latent_channels=4)
    weights.save_vae(AutoencoderKLCogVideoX(other).initialize(0), tmp_path / "vae")
    message = r"components: the transformer has in_channels 16, the vae latent_channels 4; need parts of the same sizes"
    with pytest.raises(UserError, match=message):
        make(tmp_path / "a", components={"vae": str(tmp_path / "vae")})
    with pytest.raises(UserError, match=r"folder not found"):
        make(tmp_path / "b", components={"vae": str(tmp_path / "none")})
    with pytest.raises(UserError, match=r"tokenizer .*: neither"):
        make(tmp_path / "c", components={"tokenizer": str(world / "train")})


@pytest.mark.parametrize(("suffix", "name"), [("mp4", "000-a-red-circle-0.mp4"), ("png", "000-a-red-circle-0")])
def test_generate_lists_its_videos_with_their_captions(tmp_path, suffix, name):
    """Decoding is left out: the table is what this is about."""
    prompts = ["a red circle", 'a "blue" square,\nmoving up']
    recipe = {"kind": "generate", "model": {"preset": "tiny-1.5"}, "prompts": prompts, "num_videos_per_prompt": 2}
    recipe |= {"video": {**SIZE, "frames": 9}, "save": {"format": suffix}}
    with pytest.MonkeyPatch.context() as patch:
        made = [(p, n) for p in range(2) for n in range(2)]
        items = [
            generate._Made(
                prompt=prompts[p], stem=f"{p:03d}-{generate.slug(prompts[p])}-{n}", latents=np.zeros((3, 16, 2, 4))
            )
            for p, n in made
        ]
        patch.setattr(generate, "_denoise", lambda *_: items)
        patch.setattr(generate, "_encode", lambda *_: SimpleNamespace(prompts=prompts))
        patch.setattr("core.vae.streaming.decode_pieces", lambda *_: iter([np.zeros((3, 9, 16, 32), np.float32)]))
        events = run(generate, recipe, tmp_path / "out")
    rows = read_manifest(tmp_path / "out" / "video_caption.csv").rows
    assert [row.caption for row in rows] == [prompts[p] for p, _ in made]
    assert rows[0].video == name
    assert all((tmp_path / "out" / row.video).exists() for row in rows)
    tables = [event for event in events if event["type"] == "artifact" and event["kind"] == "table"]
    assert [Path(event["path"]).name for event in tables] == ["video_caption.csv"]
