"""Buckets in a recipe: problems inside the list are shown at their line, and what is read is what is written."""

from __future__ import annotations

from pathlib import Path

from recipes.load import load_recipe
from tests.recipes.helpers import places, problems_of

HEAD = """schema: 1
kind: encode-video
name: x
model: {path: m}
data: {csv: a.csv, video_folder: v}
video:
  max_crop: 0.2
  buckets:
"""


def test_a_bucket_list_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(HEAD + "    - {frames: 17, height: 64, width: 96}\n", encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    (bucket,) = recipe.video.buckets  # type: ignore[attr-defined]  # the kind is encode-video
    assert (bucket.frames, bucket.height, bucket.width) == (17, 64, 96)
    assert (bucket.batch_size, bucket.keep_probability) == (1, 1.0)


def test_problems_inside_the_list_have_their_own_places(tmp_path: Path) -> None:
    entries = """    - {frames: 17, height: 64, width: 96}
    - {frames: 18, height: 64, width: 96}
    - {frames: 17, height: 64, width: 96}
"""
    problems = problems_of(tmp_path, HEAD + entries)
    assert places(problems) == [(10, 16, "video.buckets.1.frames"), (11, 7, "video.buckets.2")]
    entries = "    - {frames: 17, height: 60, width: 96, keep_probability: 0, batch: 2}\n"
    problems = problems_of(tmp_path, HEAD + entries)
    assert places(problems) == [
        (9, 28, "video.buckets.0.height"),
        (9, 61, "video.buckets.0.keep_probability"),
        (9, 64, "video.buckets.0.batch"),
    ]
