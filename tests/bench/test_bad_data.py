"""Data as people have it: difficult captions reach the encoder unchanged, a broken table stops a task in one line."""

from __future__ import annotations

import csv

import pytest

from bench.tasks import encode_text, encode_video
from core.data import cache
from core.data.loader import CachedClips
from core.data.manifest import read_manifest
from core.errors import UserError
from core.text.tokenizer import Tokenizer
from tests.bench.task_runs import failures, run_task, video_recipe

pytestmark = pytest.mark.usefixtures("mindspore_runs")

CAPTIONS = [
    'she said "stop", twice',
    "two\nlines\r\nand\ttabs",
    "emoji 🐎👩‍🚀 and größe",
    "a red circle " * 769 + "abc",
    "= formula(), 'quotes' \\ and ; semicolons",
]
TABLES = {
    "an open quote": ('video,caption\na.mp4,"never closed\n', r"c\.csv:2: not valid CSV"),
    "no header": ("a.mp4,a horse\n", r"c\.csv:1: no column 'video'"),
    "a comma too many": ("video,caption\na.mp4,b,c\n", r"c\.csv:2 \(row 1\): 3 fields where the header has 2"),
    "nothing": ("", r"c\.csv: empty file"),
    "no rows": ("video,caption\n", r"c\.csv: a header but no rows"),
    "binary": ("\x00\x01\x02\n\x00", r"c\.csv"),
}


def test_difficult_captions_are_encoded_character_by_character(tmp_path, text_recipe):
    assert len(CAPTIONS[3]) == 10_000
    table = tmp_path / "c.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["video", "caption"], *([f"{i}.mp4", text] for i, text in enumerate(CAPTIONS))])
    ctx, events = run_task(encode_text, text_recipe | {"data": {"csv": str(table)}}, tmp_path / "out")
    assert ctx.failures == 0
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    for i, caption in enumerate(CAPTIONS):
        found = cache.read_text_cache(tmp_path / "out" / f"{i}.npz")
        assert (found.text_emb[:, 0] == tokenizer.encode(caption, max_length=24).input_ids[0]).all()
    texts = next(event["value"] for event in events if event["type"] == "note" and event["key"] == "texts")
    assert any(line.startswith("3.mp4: ") for line in texts["too_long_first"])


@pytest.mark.parametrize("what", TABLES)
def test_a_broken_table_is_said_in_one_line_by_every_task(tmp_path, clips, text_recipe, what):
    text, words = TABLES[what]
    table = tmp_path / "c.csv"
    table.write_text(text)
    recipes = [(encode_text, text_recipe | {"data": {"csv": str(table)}})]
    data = {"csv": str(table), "video_folder": str(clips)}
    recipes.append((encode_video, video_recipe(clips) | {"data": data}))
    for task, recipe in recipes:
        if what == "a comma too many":  # a bad row is reported and the rest goes on
            ctx, events = run_task(task, recipe, tmp_path / "out")
            assert ctx.failures == 1
            message = failures(events)[0][2]
        else:
            with pytest.raises(UserError, match=words) as error:
                run_task(task, recipe, tmp_path / "out")
            message = str(error.value)
        assert "\n" not in message
    with pytest.raises(UserError, match=words):
        CachedClips(read_manifest(table), tmp_path, tmp_path, latent_frames=3, scaling_factor=1.0, seed=0)


def test_caches_that_are_missing_are_counted_and_the_first_is_named(tmp_path):
    (tmp_path / "c.csv").write_text("video,caption\na.mp4,x\nb.mp4,y\n")
    with pytest.raises(UserError, match=r"c\.csv:2 \(row 1\): .*a\.npz: no cache for a\.mp4; run the enc.*1 more rows"):
        CachedClips(
            read_manifest(tmp_path / "c.csv"), tmp_path / "t5", tmp_path / "vae", latent_frames=3, scaling_factor=1.0,
            seed=0,
        )  # fmt: skip
