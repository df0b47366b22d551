"""make-model, train, generate and decode-latents in this process, with a tiny model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench.tasks import decode_latents, encode_text, encode_video, generate, inputs, make_model, train
from bench.tasks import models as models_module
from core import ops, weights
from core.data import shapes
from core.data.video import VideoReader
from core.errors import UserError
from recipes.schema.common import Tiling
from tests.bench.task_runs import run_task

SIZE = {"height": 32, "width": 48}
PROMPT = "a red circle moving to the right on a black background"


pytestmark = pytest.mark.usefixtures("mindspore_runs")


def run(task, recipe: dict, out: Path) -> list[dict]:
    """The task's events."""
    return run_task(task, recipe, out)[1]


def named(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["type"] == kind]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model folder, three clips and their caches."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        for module in (models_module, make_model):
            patch.setattr(module, "start_mindspore", lambda runtime, seed: {})
        run(make_model, {"kind": "make-model", "model": {"preset": "tiny-1.5"}}, root / "model")
        shapes.write_clips(root / "clips", [shapes.draw_clip(0, i) for i in range(3)], frames=9, fps=8, **SIZE)
        csv = str(root / "clips" / "video_caption.csv")
        model = {"path": str(root / "model")}
        text = {"max_length": 16}
        run(encode_text, {"kind": "encode-text", "model": model, "data": {"csv": csv}, "text": text}, root / "text")
        video = {"video": {**SIZE, "max_frames": 9}, "data": {"csv": csv, "video_folder": str(root / "clips")}}
        run(encode_video, {"kind": "encode-video", "model": model, **video}, root / "video")
    return root


def train_recipe(world, **more) -> dict:
    data = {
        "csv": str(world / "clips" / "video_caption.csv"),
        "text_embed_folder": str(world / "text"),
        "video_embed_folder": str(world / "video"),
    }
    section = {"steps": 3, "gradient_accumulation_steps": 2, "text_drop_prob": 0.5, "save_every": 2}
    recipe = {"kind": "train", "model": {"path": str(world / "model")}, "data": data, "video": {**SIZE, "frames": 9}}
    return {**recipe, "train": {**section, **more.pop("train", {})}, **more}


def generate_recipe(world, **more) -> dict:
    recipe = {"kind": "generate", "model": {"path": str(world / "model")}, "prompts": [PROMPT]}
    recipe |= {"video": {**SIZE, "frames": 9}, "sampling": {"steps": 2, "guidance_scale": 3.0}}
    return {**recipe, "text": {"max_length": 16}, **more}


def test_make_model_refuses_what_has_weights(tmp_path):
    with pytest.raises(UserError, match=r"model\.preset: got '5b', need a tiny preset"):
        run(make_model, {"kind": "make-model", "model": {"preset": "5b"}}, tmp_path / "out")


def test_train_writes_a_transformer_that_moved(world, tmp_path):
    events = run(train, train_recipe(world), tmp_path / "out")
    steps = named(events, "step")
    assert [step["index"] for step in steps] == [0, 1, 2]
    assert steps[0]["tags"] == ["compile"]
    assert {step["samples"] for step in steps} == {2}
    # 9 frames are 3 latent frames, padded to 4 for patches of 2: 2 x 2 x 3 patches and 16 text tokens, two samples.
    assert {step["tokens"] for step in steps} == {2 * (2 * 2 * 3 + 16)}
    assert all(0 < float.fromhex(step["loss_hex"]) < 10 and step["extra"]["data_seconds"] >= 0 for step in steps)
    old, new = (weights.load_transformer(folder) for folder in (world / "model", tmp_path / "out"))
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert not np.array_equal(weights.parameter_array(old, name), weights.parameter_array(new, name))
    middle = weights.load_transformer(tmp_path / "out" / "checkpoint-000002")
    assert not np.array_equal(weights.parameter_array(middle, name), weights.parameter_array(new, name))
    assert named(events, "digest")[-1]["value"] == weights.parameter_digest(new)


def test_training_twice_has_the_same_bits(world, tmp_path):
    runs = [run(train, train_recipe(world), tmp_path / name) for name in ("a", "b")]
    bits = [[step["loss_hex"] for step in named(events, "step")] for events in runs]
    assert bits[0] == bits[1]
    assert named(runs[0], "digest")[-1]["value"] == named(runs[1], "digest")[-1]["value"]


def test_training_encodes_in_the_loop_and_leaves_vae_and_text_encoder_alone(world, tmp_path, monkeypatch):
    frozen: list = []
    for name in ("vae", "text_encoder"):
        load = getattr(models_module.Models, name)

        def kept(self, *args, load=load):
            found = load(self, *args)
            model = found[0] if isinstance(found, tuple) else found
            frozen.append((model, weights.parameter_digest(model)))
            return found

        monkeypatch.setattr(models_module.Models, name, kept)
    recipe = train_recipe(world, train={"steps": 2, "gradient_accumulation_steps": 1, "horizontal_flip": True})
    csv = str(world / "clips" / "video_caption.csv")
    recipe["data"] = {"csv": csv, "encode": "online", "video_folder": str(world / "clips")}
    recipe["validation"] = {"csv": csv, "video_folder": str(world / "clips"), "every": 2, "timesteps": [500]}
    events = run(train, {**recipe, "text": {"max_length": 16}}, tmp_path / "out")
    assert [step["index"] for step in named(events, "step")] == [0, 1, 1]
    assert {step["tokens"] for step in named(events, "step") if "tokens" in step} == {2 * 2 * 3 + 16}
    assert len(frozen) == 2
    for model, digest in frozen:
        assert weights.parameter_digest(model) == digest
        assert not any(parameter.requires_grad for parameter in model.get_parameters())


def test_a_cache_of_another_vae_is_refused(world, tmp_path):
    other = tmp_path / "other"
    run(make_model, {"kind": "make-model", "model": {"preset": "tiny-1.5", "init_seed": 1}}, other)
    recipe = train_recipe(world, model={"path": str(world / "model"), "vae": str(other / "vae")})
    with pytest.raises(UserError, match=r"made by another VAE than this run's"):
        run(train, recipe, tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"video": {"height": 64, "width": 48, "frames": 9}}, r"latents \[16, 4, 6\] .*need \[16, 8, 6\] for 64x48"),
        ({"text": {"max_length": 20}}, r"text\.max_length: got 20, the cache has 16 tokens"),
        ({"model": {"preset": "1.5-2b"}}, "embeddings are 64 wide, the model needs 4096"),
    ],
)
def test_caches_of_another_size_or_model_are_refused(world, tmp_path, changed, words, monkeypatch):
    if "preset" in changed.get("model", {}):
        monkeypatch.setattr(models_module.Models, "transformer", lambda self, dtype=None: _Sizes())
    with pytest.raises(UserError, match=words):
        run(train, train_recipe(world, **changed), tmp_path / "out")


class _Sizes:
    """Stands for a large transformer where only its sizes are looked at."""

    def __init__(self):
        from core.presets import PRESETS

        self.config = PRESETS["1.5-2b"].transformer


def test_generate_writes_video_and_latents(world, tmp_path):
    recipe = generate_recipe(world, num_videos_per_prompt=2, save={"format": "mp4", "latents": True})
    events = run(generate, recipe, tmp_path / "out")
    videos = [event for event in named(events, "artifact") if event["kind"] == "video"]
    assert len(videos) == 2
    assert {event["meta"]["prompt"] for event in videos} == {PROMPT}
    with VideoReader(videos[0]["path"], "pyav") as reader:
        assert (reader.info.frames, reader.info.height, reader.info.width) == (9, 32, 48)
    assert len(named(events, "step")) == 4
    assert {d["name"].split("/")[0] for d in named(events, "digest")} == {"latents", "video"}
    assert len({d["value"] for d in named(events, "digest")}) == 4


def test_generate_repeats_its_bits_whatever_the_batch(world, tmp_path):
    both = run(generate, generate_recipe(world, num_videos_per_prompt=2), tmp_path / "both")
    again = run(generate, generate_recipe(world), tmp_path / "one")
    digests = [d["value"] for d in named(both, "digest") if d["name"].startswith("latents/")]
    assert digests[0] == next(d["value"] for d in named(again, "digest") if d["name"].startswith("latents/"))


def test_denoising_in_pieces_gives_the_same_latents(world, tmp_path, monkeypatch):
    """But for rounding; with guidance 16 text tokens and those of both passes' video go through in pieces of 7."""
    longest, plain = [], ops.gelu_tanh

    def noting(x):
        longest.append(int(np.prod(x.shape[:-1])))
        return plain(x)

    monkeypatch.setattr(ops, "gelu_tanh", noting)
    found = []
    for chunk in (None, 7):
        longest.clear()
        sampling = {"steps": 2, "guidance_scale": 3.0, "feed_forward_chunk": chunk}
        folder = tmp_path / str(chunk)
        run(generate, generate_recipe(world, sampling=sampling, save={"decode": False, "latents": True}), folder)
        assert (max(longest) == 16) == (chunk is not None)  # the text encoder's tokens
        with np.load(next(folder.glob("*.npz"))) as saved:
            found.append(saved["latents"])
    assert np.abs(found[1] - found[0]).max() <= 1e-5


def test_given_embeddings_and_latents_replace_their_stages(world, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "latents.npy", rng.standard_normal((4, 16, 4, 6), np.float32))
    embeds = {
        "prompt_embeds": str(next((world / "text").rglob("vid001.npz"))),
        "latents": str(tmp_path / "latents.npy"),
    }
    embeds["negative_prompt_embeds"] = str(world / "text" / "empty_text.npz")
    recipe = generate_recipe(world, inputs=embeds, save={"decode": False, "latents": True})
    del recipe["prompts"]
    events = run(generate, recipe, tmp_path / "out")
    stages = {stage["name"] for stage in named(events, "stage")}
    assert {stage.split("/")[0] for stage in stages} == {"load_transformer", "denoise"}
    with np.load(next((tmp_path / "out").glob("*.npz"))) as saved:
        assert saved["latents"].shape == (3, 16, 4, 6)


def test_two_stage_decoding_gives_the_same_pixels(world, tmp_path):
    whole = run(generate, generate_recipe(world, save={"format": "npy", "latents": True}), tmp_path / "whole")
    recipe = {"kind": "decode-latents", "model": {"path": str(world / "model")}, "latents": str(tmp_path / "whole")}
    for path in (tmp_path / "whole").glob("*.npy"):
        path.rename(path.with_suffix(".npy.kept"))
    later = run(decode_latents, {**recipe, "save": {"format": "npy"}}, tmp_path / "later")
    pixels = [[d["value"] for d in named(e, "digest") if d["name"].startswith("video/")] for e in (whole, later)]
    assert pixels[0] == pixels[1]
    assert len(pixels[0]) == 1


def test_decoding_a_cache_and_a_damaged_file(world, tmp_path):
    folder = tmp_path / "latents"
    folder.mkdir()
    (folder / "a.npz").write_bytes(next((world / "video").rglob("*.npz")).read_bytes())
    (folder / "b.npz").write_bytes(b"PK broken")
    np.save(folder / "c.npy", np.zeros((2, 3, 4, 4), np.float32))
    recipe = {"kind": "decode-latents", "model": {"path": str(world / "model")}, "latents": str(folder)}
    events = run(decode_latents, recipe, tmp_path / "out")
    assert [Path(event["path"]).name for event in named(events, "artifact")] == ["a.mp4"]
    messages = {event["row"]: event["message"] for event in named(events, "failure")}
    assert "not a readable .npy or .npz file" in messages[2]
    assert "need [frames, 16, height, width] floats" in messages[3]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3), np.float32), "need 3 axes of floats"),
        (np.zeros((1, 2, 3), np.int64), "need 3 axes of floats"),
        (np.full((1, 2, 3), np.nan, np.float32), "NaN or infinity"),
        (np.array([{"a": 1}], object), "not a readable .npy or .npz file"),
    ],
)
def test_arrays_that_are_not_usable(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array[None] if array.ndim == 2 and "axes" not in words else array, allow_pickle=True)
    ndim = 3 if array.ndim != 2 else 4
    with pytest.raises(UserError, match=words.replace("3 axes", f"{ndim} axes")):
        inputs.batched(tmp_path / "a.npy", ("latents",), ndim)


def test_prompts_of_files(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffone\n\n  two, with comma \n", encoding="utf-8")
    assert inputs.prompts_of_file(tmp_path / "p.txt") == ["one", "two, with comma"]
    (tmp_path / "p.csv").write_text('video,caption\na.mp4,"x, ""y""\nz"\nb.mp4,w\n')
    assert inputs.prompts_of_file(tmp_path / "p.csv") == ['x, "y"\nz', "w"]
    (tmp_path / "bad.csv").write_text("video,text\na,b\n")
    with pytest.raises(UserError, match="need a header with a column 'caption' or 'prompt'"):
        inputs.prompts_of_file(tmp_path / "bad.csv")
    (tmp_path / "empty.csv").write_text("caption\nok\n  \n")
    with pytest.raises(UserError, match="row 3: empty caption"):
        inputs.prompts_of_file(tmp_path / "empty.csv")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="no prompt in it"):
        inputs.prompts_of_file(tmp_path / "empty.txt")
    assert inputs.slug("A  red Circle!") == "a-red-circle"
    assert inputs.slug("日本") == "video"


@pytest.mark.parametrize("at_once", [1, 4])
def test_tiles_of_the_recipe_reach_the_vae(world, tmp_path, at_once):
    tiling = {"tile_height": 16, "tile_width": 24, "overlap_height": 8, "overlap_width": 8, "tiles_at_once": at_once}
    kinds = {"kind": "decode-latents", "model": {"path": str(world / "model")}, "save": {"format": "npy"}}
    latents = {"latents": str(next((world / "video").rglob("vid001.npz")))}
    whole = run(decode_latents, {**kinds, **latents}, tmp_path / "whole")
    tiled = run(decode_latents, {**kinds, **latents, "vae": {"tiling": tiling}}, tmp_path / "tiled")
    assert named(whole, "digest")[0]["value"] != named(tiled, "digest")[0]["value"]
    pixels = [np.load(next((tmp_path / name).glob("*.npy"))).astype(int) for name in ("whole", "tiled")]
    assert pixels[0].shape == pixels[1].shape
    config = models_module.tiling_of(SimpleNamespace(tiling=Tiling(**tiling)))
    assert (config.vectorised, config.max_batch, config.overlap_height) == (at_once > 1, at_once, 0.5)
