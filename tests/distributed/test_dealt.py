"""Real recipes on 2 ranks against the same on 1: caches to the bit, latents and videos within fp32's rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.job import Job
from bench.record import Record
from bench.runner import run_job
from core.data import shapes
from recipes.load import from_dict
from tests import tolerances
from tests.bench.jobs import digest_of

SIZE = {"height": 32, "width": 48}


def run_recipe(folder: Path, recipe: dict[str, Any], workers: int) -> Record:
    """Runs a recipe without files of its own (preset weights) on so many ranks."""
    runtime = {"workers": workers, "mode": "pynative", "kernels": "operators"}
    full = {"schema": 1, "name": "t", "model": {"preset": "tiny-1.5"}, "runtime": runtime} | recipe
    data = from_dict(full).model_dump(by_alias=True, mode="json")
    folder.mkdir()
    return run_job(
        Job(kind=data["kind"], name="t", data=data, digest=digest_of(data), run_dir=folder, command=("cogbench",))
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips, and a row whose file is missing."""
    folder = tmp_path_factory.mktemp("clips")
    shapes.write_clips(folder, [shapes.draw_clip(0, i) for i in range(3)], frames=25, fps=8, **SIZE)
    table = folder / "video_caption.csv"
    table.write_text(table.read_text() + "part01/missing.mp4,a caption\n")
    return folder


def encoding(clips: Path) -> dict[str, Any]:
    """The recipe that encodes them."""
    table = {"csv": str(clips / "video_caption.csv"), "video_folder": str(clips)}
    return {"kind": "encode-video", "data": table, "video": {**SIZE, "max_frames": 25}}


@pytest.fixture(scope="module")
def alone(clips, tmp_path_factory):
    """The clips encoded by one process: its record and folder."""
    folder = tmp_path_factory.mktemp("alone") / "one"
    return run_recipe(folder, encoding(clips), 1), folder


def same_caches(one: Record, folder: Path, other: Record, others: Path) -> None:
    """The files of two runs, to the bit."""
    names = sorted(artifact.path for artifact in one.artifacts)
    assert sorted(artifact.path for artifact in other.artifacts) == names
    assert len(names) == 3
    for name in names:
        with np.load(folder / name) as single, np.load(others / name) as dealt:
            for key in ("latent_mean", "latent_std"):
                np.testing.assert_array_equal(single[key], dealt[key])


def test_chunks_of_each_clip_are_dealt_and_decoding_has_the_same_pixels(tmp_path, clips, alone):
    """``vae.parallel: time``: both ranks work on every clip, 3 chunks of it; the first one writes."""
    one, folder = alone
    shared = {"vae": {"parallel": "time"}}
    two = run_recipe(tmp_path / "two", encoding(clips) | shared, 2)
    assert (one.status, one.reason, one.failures) == (two.status, two.reason, two.failures)
    assert [step.index for step in two.steps] == [step.index for step in one.steps]
    same_caches(one, folder, two, tmp_path / "two")
    assert set(two.notes["traffic"]["sent"]["vae time"]) == {"broadcast", "next"}
    latents = {"kind": "decode-latents", "latents": str(folder / "out"), "save": {"format": "npy"}}
    one, two = run_recipe(tmp_path / "a", latents, 1), run_recipe(tmp_path / "b", latents | shared, 2)
    assert (one.status, two.status, two.reason) == ("ok", "ok", None)
    assert [a.sha256 for a in one.artifacts] == [a.sha256 for a in two.artifacts]
    assert one.digests == two.digests
    assert len(one.artifacts) == 3


def test_rows_of_encode_video_are_dealt_and_every_rank_ends_its_own(tmp_path, clips, alone):
    one, folder = alone
    two = run_recipe(tmp_path / "two", encoding(clips), 2)
    assert one.status == two.status == "failed"
    assert one.reason == two.reason == "1 input could not be processed (see failures)"
    assert one.failures == two.failures
    assert [(step.index, step.extra["video"]) for step in one.steps] == [
        (step.index, step.extra["video"]) for step in two.steps
    ]
    assert [row.steps for row in two.ranks] == [1, 0], "each rank's first is excluded: it compiles"
    same_caches(one, folder, two, tmp_path / "two")


@pytest.mark.parametrize("shards", [1, 2])
def test_videos_of_two_ranks_are_those_of_one(tmp_path, shards):
    """With 2 shards the ranks share each video's tokens and tiles, with 1 they take one video each."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "text.npy", rng.standard_normal((2, 5, 64), np.float32))
    recipe = {
        "kind": "generate",
        "video": {**SIZE, "frames": 9},
        "sampling": {"steps": 2, "guidance_scale": 1.0},
        "inputs": {"prompt_embeds": str(tmp_path / "text.npy")},
        "vae": {"tiling": {"tile_height": 16, "tile_width": 24, "overlap_height": 0, "overlap_width": 0}},
        "save": {"latents": True, "format": "npy"},
    }
    one = run_recipe(tmp_path / "one", recipe, 1)
    two = run_recipe(tmp_path / "two", recipe | {"parallel": {"sequence_parallel": shards}}, 2)
    assert (one.status, two.status, two.reason) == ("ok", "ok", None)
    assert [step.index for step in two.steps] == [step.index for step in one.steps] == [0, 1, 2, 3]
    names = sorted(artifact.path for artifact in one.artifacts)
    assert sorted(artifact.path for artifact in two.artifacts) == names
    assert sum(name.endswith(".npz") for name in names) == 2
    for name in (name for name in names if name.endswith(".npz")):
        with np.load(tmp_path / "one" / name) as single, np.load(tmp_path / "two" / name) as shared:
            error = np.linalg.norm(shared["latents"] - single["latents"]) / np.linalg.norm(single["latents"])
        assert error <= (tolerances.PIPELINE if shards > 1 else 0)
    traffic = two.notes["traffic"]["sent"]
    assert set(traffic) == ({"sequence", "vae tiles"} if shards > 1 else set())
