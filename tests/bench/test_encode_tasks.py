from __future__ import annotations

import shutil

import mindspore as ms
import numpy as np
import pytest

from bench.context import RunContext
from bench.events import EventLog
from bench.tasks import encode_text, encode_video, make_clips
from bench.tasks import models as models_module
from core.data import cache, shapes
from core.data.manifest import read_manifest
from core.data.transforms import fit, to_model
from core.data.video import VideoReader
from core.errors import UserError
from core.text.tokenizer import Tokenizer
from recipes.load import from_dict
from tests.bench.task_runs import SMALL, failures, run_task, video_recipe

pytestmark = pytest.mark.usefixtures("mindspore_runs")


def test_make_clips_writes_what_its_recipe_says(tmp_path):
    wanted = {"count": 2, "height": 32, "width": 48, "frames": 5, "shapes": ["square"], "motions": ["up"]}
    _, events = run_task(make_clips, {"kind": "make-clips", "clips": wanted}, tmp_path / "out")
    rows = read_manifest(tmp_path / "out" / "video_caption.csv", video_folder=tmp_path / "out").rows
    assert [row.video for row in rows] == ["video_folder/part01/vid001.mp4", "video_folder/part01/vid002.mp4"]
    assert all("square moving up" in row.caption for row in rows)
    assert [event["kind"] for event in events if event["type"] == "artifact"] == ["video", "video", "table"]


def test_encode_video_writes_the_vaes_moments_and_keeps_what_is_there(tmp_path, clips):
    out = tmp_path / "out"
    _, events = run_task(encode_video, video_recipe(clips), out)
    path = out / "video_folder/part01/vid001.npz"
    found = cache.read_video_cache(path)
    assert (found.latent_mean.shape[0], found.fps, found.ori_size) == (3, 8.0, (40, 62))
    # The same clip given to the VAE at once.
    with VideoReader(clips / "video_folder/part01/vid001.mp4") as reader:
        pixels = to_model(fit(reader.read(np.arange(9)), 32, 48))
    recipe = from_dict({"schema": 1, "name": "x", **video_recipe(clips)})
    vae = models_module.Models(recipe, RunContext(recipe, out, 0, EventLog(tmp_path / "vae.jsonl"))).vae()
    mean, std = (part.asnumpy()[0].transpose(1, 0, 2, 3) for part in vae.encode(ms.Tensor(pixels[None])))
    np.testing.assert_allclose(found.latent_mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.latent_std, std, atol=1e-5)
    steps = [event for event in events if event["type"] == "step"]
    assert [step["frames"] for step in steps] == [9, 9, 9]
    assert [step["tags"] for step in steps] == [["compile"], [], []]
    times = path.stat().st_mtime_ns
    _, events = run_task(encode_video, video_recipe(clips), out)
    assert path.stat().st_mtime_ns == times
    assert not [event for event in events if event["type"] in ("step", "failure")]


def test_encode_video_reports_each_bad_row_and_goes_on(tmp_path, clips):
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    short = [shapes.draw_clip(1, 0)]
    shapes.write_clips(tmp_path / "short", short, frames=4, height=40, width=62, fps=8)
    (tmp_path / "short/video_folder/part01/vid001.mp4").rename(folder / "short.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    with (folder / "video_caption.csv").open("a") as file:
        file.write("empty.mp4,x\nnone.mp4,y\n../outside.mp4,z\nshort.mp4,w\n")
    (folder / "video_folder/part01/vid002.mp4").write_bytes(b"not a video at all")
    ctx, events = run_task(encode_video, video_recipe(folder, video=SMALL | {"frames_rule": "8n+1"}), tmp_path / "out")
    found = failures(events)
    assert ctx.failures == 5
    assert [row for row, _, _ in found] == [6, 2, 4, 5, 7]
    text = {row: message for row, _, message in found}
    assert "leaves the video folder" in text[6]
    assert "not a video that can be decoded" in text[2]
    assert "empty file (0 bytes)" in text[4]
    assert "no such file" in text[5]
    assert "4 frames at 8 fps" in text[7]
    assert "got 4, the rule 8n+1 needs 9, 17, 25" in text[7]
    assert len(list((tmp_path / "out").rglob("*.npz"))) == 2
    assert not list((tmp_path / "out").rglob("*.part*"))


def test_encode_video_does_not_mix_settings(tmp_path, clips):
    out = tmp_path / "out"
    run_task(encode_video, video_recipe(clips), out)
    before = {path: path.read_bytes() for path in out.rglob("*.npz")}
    tiles = {"tile_height": 32, "tile_width": 32, "overlap_height": 0, "overlap_width": 16}
    changed = video_recipe(clips, vae={"tiling": tiles})
    ctx, events = run_task(encode_video, changed, out)
    assert ctx.failures == 3
    assert "made with other settings (tiling unset instead of" in failures(events)[0][2]
    assert {path: path.read_bytes() for path in out.rglob("*.npz")} == before
    ctx, _ = run_task(encode_video, changed | {"overwrite": True}, out)
    assert ctx.failures == 0
    assert all(path.read_bytes() != data for path, data in before.items())


def test_a_full_disk_ends_encode_video_at_once(tmp_path, clips, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(cache.OutputError, match=r"vid001\.npz: can't be written \(No space left on device\)"):
        run_task(encode_video, video_recipe(clips), tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_encode_video_needs_its_folder(tmp_path, clips):
    recipe = video_recipe(clips)
    recipe["data"] = {**recipe["data"], "video_folder": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match=r"data\.video_folder: no such folder"):
        run_task(encode_video, recipe, tmp_path / "out")


def test_encode_text_of_a_csv_file(tmp_path, clips, text_recipe):
    out = tmp_path / "out"
    _, events = run_task(encode_text, text_recipe, out)
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.npz"))
    assert names == ["empty_text.npz"] + [f"video_folder/part01/vid00{i}.npz" for i in (1, 2, 3)]
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    for row in read_manifest(clips / "video_caption.csv"):
        found, tokens = (
            cache.read_text_cache(cache.cache_path(out, row.video)),
            tokenizer.encode(row.caption, max_length=24),
        )
        assert (found.text_emb[:, 0] == tokens.input_ids[0]).all()
        assert (found.mask == tokens.mask[0]).all()
        assert found.tokens is None
    assert cache.read_text_cache(out / "empty_text.npz").mask.sum() == 1  # the end mark
    assert [event["samples"] for event in events if event["type"] == "step"] == [2, 2]
    _, events = run_task(encode_text, text_recipe, out)
    assert not [event for event in events if event["type"] in ("step", "failure")]
    ctx, events = run_task(encode_text, text_recipe | {"text": {"max_length": 16}}, out)
    assert ctx.failures == 4
    assert "made with other settings (max_length 24 instead of 16" in failures(events)[0][2]


def test_encode_text_of_prompts(tmp_path, text_recipe):
    (tmp_path / "prompts.txt").write_text("a blue square " * 20 + "\na red circle\n\nup\n", encoding="utf-8")
    recipe = {name: value for name, value in text_recipe.items() if name != "data"}
    recipe |= {"prompts_file": str(tmp_path / "prompts.txt"), "text": {"max_length": 24, "empty_text": False}}
    _, events = run_task(encode_text, recipe, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000-a-blue-square-a-blue-square-a-blue-square-a.npz", "001-a-red-circle.npz", "002-up.npz"]
    tokens = cache.read_text_cache(tmp_path / "out" / "001-a-red-circle.npz").tokens
    assert tokens is not None
    assert tokens.shape == (24,)
    note = next(event["value"] for event in events if event["type"] == "note" and event["key"] == "texts")
    assert (note["total"], note["encoded"], note["too_long"]) == (3, 3, 1)


def test_encode_text_reports_a_row_without_caption_and_goes_on(tmp_path, text_recipe):
    (tmp_path / "c.csv").write_text("video,caption\na.mp4,red\nb.mp4,\nc.mp4,up\n")
    ctx, events = run_task(encode_text, text_recipe | {"data": {"csv": str(tmp_path / "c.csv")}}, tmp_path / "out")
    assert ctx.failures == 1
    assert failures(events)[0][:2] == (2, "b.mp4")
    assert "c.csv:3 (row 2): empty caption for b.mp4" in failures(events)[0][2]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.npz", "c.npz", "empty_text.npz"]
