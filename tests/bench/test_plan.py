"""Plans by hand arithmetic, and what the command says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.codes import MISMATCH, PASS, USAGE
from bench.flops import total
from bench.flops_vae import vae_decode
from bench.plan import encoders, liveness, memory
from bench.plan.advice import suggestions
from bench.plan.cost import communication_bytes, decode_flops, encode_flops, time_of, training_work, vae_bytes
from bench.plan.dryrun import kept, parse_peak, refuse_without_ascend
from bench.plan.planner import plan_recipe
from bench.plan.profiles import load_profile, names
from bench.plan.workload import Sizes, Training, elements, norm_first, published_name, sizes_of
from bench.recipe_access import open_recipe
from core.errors import UserError
from core.params import ParamSpec
from core.presets import PRESETS
from core.vae.ends import ends
from recipes.load import load_recipe
from tests.reports import samples

ROOT = Path(__file__).resolve().parents[2]
SFT = ROOT / "recipes" / "ascend910" / "sft_768x1360x77_8p.yaml"
TABLE = {"w": ParamSpec(shape=(4, 6)), "b": ParamSpec(shape=(4,)), "odd": ParamSpec(shape=(3,))}


def published(**changes) -> Training:
    """77 frames at 768x1360 on one card: 10 x 48 x 85 = 40,800 video tokens and 224 of text."""
    base = Training(
        config=PRESETS["1.5-5b"].transformer, frames=20, height=96, width=170, text_tokens=224, stored=2, computed=2,
        masters=True, recompute="all",
    )  # fmt: skip
    return replace(base, **changes)


def test_a_rank_holds_rows_filled_up_to_equal_parts() -> None:
    assert elements(TABLE) == 24 + 4 + 3
    assert elements(TABLE, 4) == 6 + 1 + 1
    assert elements(TABLE, 2) == 12 + 2 + 2
    # Three ranks: w's 4 rows of 6 become 2 each, b's 4 become 2.
    assert elements(TABLE, 3) == 12 + 2 + 1
    # Leading ones are no rows: 3 rows of 2 on 2 ranks.
    assert elements({"x": ParamSpec(shape=(1, 3, 2))}, 2) == 4


def test_the_successor_cuts_only_what_divides() -> None:
    assert elements(TABLE, 4, padded=False) == 6 + 1 + 3
    assert elements(TABLE, 2, padded=False) == 12 + 2 + 3
    assert memory.optimizer_bytes(TABLE, "came", shards=2, padded=False) == 4 * (12 + 2 * (2 + 6) + 2 * 2 + 2 * 3)


def test_state_of_the_optimisers() -> None:
    assert memory.optimizer_bytes(TABLE, "adamw") == 2 * 4 * 31
    # w: m 24, update and residual with a row average of 4 and a column average of 6; vectors: m and v.
    assert memory.optimizer_bytes(TABLE, "came") == 4 * (24 + 2 * (4 + 6) + 2 * 4 + 2 * 3)
    # Two shards: rows are cut, column averages are on every rank.
    assert memory.optimizer_bytes(TABLE, "came", shards=2) == 4 * (12 + 2 * (2 + 6) + 2 * 2 + 2 * 2)


def test_tokens_and_what_a_block_keeps() -> None:
    work = published()
    assert (work.video_tokens, work.tokens, work.local_tokens) == (40_800, 41_024, 41_024)
    stream = 41_024 * 3072 * 2
    assert liveness.kept_between_passes(work, 0) == stream
    state = 48 * 41_024 * 64
    keeping = published(recompute="keep_attention")
    assert liveness.kept_between_passes(keeping, 7) == 2 * stream + state
    # In bytes for each token and D: 54 by the rows of OURS in bf16 (4 where fp32).
    assert liveness.saved_bytes(work) == 41_024 * 3072 * 54 + state
    assert liveness.kept_between_passes(published(recompute="none"), 0) == stream + 41_024 * 3072 * 54 + state
    every = published(recompute_every=2)
    assert liveness.kept_between_passes(every, 1) > liveness.kept_between_passes(every, 2) == stream


def test_feed_forwards_in_pieces() -> None:
    tokens, dim = 41_024, 3072
    whole, pieces = published(), published(feed_forward_chunk=4096)
    assert (whole.in_pieces, pieces.in_pieces, published(feed_forward_chunk=tokens).in_pieces) == (False, True, False)
    assert published(feed_forward_chunk=tokens, batch=2).in_pieces
    assert not published(feed_forward_chunk=tokens // 2, ranks=8, sequence_parallel=8).in_pieces
    # The hidden layer before and after GELU, 4 D each, is not kept.
    assert liveness.saved_bytes(whole) - liveness.saved_bytes(pieces) == tokens * dim * 2 * 8
    assert liveness.moving_bytes(whole) == tokens * dim * 2 * 9
    # 11 pieces of 3730 tokens with 16 D each, 3 D of all tokens; both weights' sums in fp32 where bf16 would be, the
    # product that is added and its sum.
    weight = 4 * dim * dim
    assert liveness.moving_bytes(pieces) == dim * 2 * (3730 * 16 + tokens * 3) + weight * (2 + 4) + 2 * weight * 2
    # With small pieces of a LoRA's step attention's gradient is more: 5 D of all tokens.
    lora = published(feed_forward_chunk=64, lora=TABLE)
    assert liveness.moving_bytes(lora) == tokens * dim * 2 * 5
    advised = {s.change: s for s in suggestions(whole, load_profile("ascend-910b-64gb"), 1)}
    found = advised["train.feed_forward_chunk: 4096"]
    assert found.slower_percent is not None
    assert 0 < found.slower_percent < 5
    assert not [s for s in suggestions(pieces, load_profile("ascend-910b-64gb"), 1) if "chunk" in s.change]


def test_denoising_in_pieces() -> None:
    """Without: 10 D a token. In pieces of 3, 4 and 3 tokens: 8 D of a piece; residual, input, outputs twice of all."""
    assert liveness.forward_bytes(tokens=10, width=3, itemsize=2) == 10 * 3 * 2 * 10
    assert liveness.forward_bytes(tokens=10, width=3, itemsize=2, chunk=10) == 10 * 3 * 2 * 10
    assert liveness.forward_bytes(tokens=10, width=3, itemsize=2, chunk=4) == 3 * 2 * (4 * 8 + 10 * 4)


def test_sequence_parallel_halves_tokens_and_rounds_up() -> None:
    work = published(ranks=8, sequence_parallel=8)
    assert work.local_tokens == 5_100 + 28
    assert replace(work, text_tokens=226).local_tokens == 5_100 + 29


def test_phases_add_up_and_the_peak_is_the_largest() -> None:
    work = published()
    phases = memory.training_phases(work, reserve=7)
    count = elements(work.table)
    for phase in phases:
        assert phase.bytes["parameters"] == 2 * count
        assert phase.bytes["masters"] == 4 * count
        assert phase.bytes["optimizer"] == 8 * count
        assert phase.bytes["reserve"] == 7
        assert phase.total == sum(phase.bytes.values())
    by_name = {phase.name: phase for phase in phases}
    assert by_name["backward, last block"].bytes["activations"] == 42 * 41_024 * 3072 * 2
    assert by_name["backward, first block"].bytes["activations"] == 41_024 * 3072 * 2
    assert by_name["backward, first block"].bytes["gradients"] == 2 * count
    assert "activations" not in by_name["optimiser update"].bytes
    assert memory.peak(phases).total == max(phase.total for phase in phases)


def test_zero_stages_cut_state_then_gradients_then_parameters() -> None:
    work = published(ranks=8)
    found = [memory.training_phases(replace(work, zero_stage=stage))[-1].bytes for stage in range(4)]
    part, whole = elements(work.table, 8), elements(work.table)
    assert [b["optimizer"] for b in found] == [8 * whole, 8 * part, 8 * part, 8 * part]
    # Sums are fp32; parameters in bf16 stand beside fp32 masters, and stage 3 has fp32 parts alone.
    assert [b["gradients"] for b in found] == [4 * whole, 4 * part, 4 * part, 4 * part]
    assert [b["parameters"] for b in found] == [2 * whole] * 3 + [4 * part]
    assert [b.get("masters") for b in found] == [4 * whole, 4 * part, 4 * part, None]
    full = replace(work, stored=4, masters=False)
    found = [memory.training_phases(replace(full, zero_stage=stage))[-1].bytes for stage in range(4)]
    assert [b.get("masters") for b in found] == [None, 4 * part, 4 * part, None]


def test_zero_over_two_of_eight_ranks_holds_halves_and_sums_them_over_copies() -> None:
    work = published(ranks=8, zero_ranks=2, zero_stage=2)
    held = memory.training_phases(work)[-1].bytes
    whole, half = elements(work.table), elements(work.table, 2)
    assert (held["parameters"], held["masters"], held["optimizer"]) == (2 * whole, 4 * half, 8 * half)
    assert held["gradients"] == 4 * half
    # Each sends half of its fp32 gradients to the other, then sums its half over four copies: 2 x 3 / 4 of it.
    sent = communication_bytes(work)
    assert sent["gradient reduce-scatter"] == 4 * half
    assert sent["gradient all-reduce of copies"] == round(2 * 3 / 4 * 4 * half)
    assert "gradient all-reduce of copies" not in communication_bytes(replace(work, zero_stage=0))
    assert sent["parameter all-gather"] == 2 * half
    advised = [
        {s.change for s in suggestions(w, load_profile("ascend-910b-64gb"), 1)} for w in (work, published(ranks=8))
    ]
    assert ["parallel.zero_ranks: null" in changes for changes in advised] == [True, False]


def test_the_successors_zero_keeps_masters_beside_parts_in_bf16() -> None:
    work = published(ranks=8, code="mindone", zero_stage=3)
    part = elements(work.table, 8, padded=False)
    found = memory.training_phases(work)[-1].bytes
    assert (found["parameters"], found["masters"], found["gradients"]) == (2 * part, 4 * part, 2 * part)


def test_bytes_on_the_wire() -> None:
    assert communication_bytes(published()) == {}
    work = published(ranks=8, sequence_parallel=8, zero_stage=2)
    # Of 64 output channels and 3072 rows 8 ranks take equal parts: nothing is padded.
    sent, whole = communication_bytes(work), 2 * elements(work.table)
    assert sent["parameter all-gather"] == round(7 / 8 * whole)
    assert sent["gradient reduce-scatter"] == 2 * sent["parameter all-gather"], "gradients are summed in fp32"
    assert sent["sequence all-to-all"] == round(42 * 3 * 4 * 5_128 * 3072 * 2 * 7 / 8)
    assert communication_bytes(replace(work, zero_stage=0))["gradient all-reduce"] == round(2 * 2 * 7 / 8 * whole)


def test_bytes_of_a_clip_whose_chunks_are_shared(tmp_path: Path) -> None:
    """17 frames at 64 x 96: 5 latent frames are 2 chunks, one wave of two ranks."""
    text = "schema: 1\nkind: generate\nname: x\nmodel: {preset: tiny-1.5}\nruntime: {workers: 2, dtype: fp32}\n"
    text += "prompts: x\nvideo: {height: 64, width: 96, frames: 17}\nparallel: {sequence_parallel: 2}\n"
    (tmp_path / "r.yaml").write_text(text)
    recipe, vae = load_recipe(tmp_path / "r.yaml").recipe, PRESETS["tiny-1.5"].vae
    sizes = {"length": 5, "height": 8, "width": 12, "itemsize": 4}
    pixels = 3 * 17 * 64 * 96 * 4
    handed_on = sum(math.prod(shape) for shape in ends(vae, "decoder", 1, 8, 12)) * 4
    expected = {"vae chunks handed on": handed_on, "vae chunks published": pixels}
    assert vae_bytes(recipe, vae, "decoder", **sizes) == expected
    (tmp_path / "r.yaml").write_text(text.replace("workers: 2, ", "").replace("parallel: 2", "parallel: 1"))
    assert vae_bytes(load_recipe(tmp_path / "r.yaml").recipe, vae, "decoder", **sizes) == {}


def test_time_is_work_over_efficiency_times_peak() -> None:
    profile = load_profile("ascend-910b-64gb")
    assert profile.flops_per_second
    assert profile.efficiency
    assert profile.link_bytes_per_second
    made = time_of(10**15, 10**9, profile, 8)
    compute = 1e15 / (profile.flops_per_second * profile.efficiency)
    assert made.seconds == pytest.approx(compute + 1e9 / profile.link_bytes_per_second)
    assert time_of(10**15, 0, load_profile("this-machine"), 1).reason


def test_clipping_in_the_backward_pass_doubles_the_time() -> None:
    found = {s.change: s for s in suggestions(published(), load_profile("ascend-910b-64gb"), 1)}
    once = found["train.optimizer_in_backward: true, train.max_grad_norm: null"]
    twice = found["train.optimizer_in_backward: true"]
    assert once.peak == twice.peak
    assert once.slower_percent == 0.0
    assert twice.slower_percent == pytest.approx(100.0)
    recipe: Any = load_recipe(ROOT / "recipes" / "tiny" / "memory.yaml").recipe
    changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"optimizer_in_backward": True})})
    assert (norm_first(recipe.train), norm_first(changed.train)) == (False, True)


def test_a_decode_is_counted_by_its_pixels() -> None:
    """Of latents, as the plan knows them; more than an encode of that clip, whose network has a resnet less a level."""
    found = PRESETS["5b"]
    sizes = Sizes(transformer=found.transformer, vae=found.vae, text=found.text, source="here")
    decode = decode_flops(sizes, latent_frames=3, height=8, width=12, tiling=None)
    assert decode == total(vae_decode(found.vae, batch=1, latent_frames=3, height=64, width=96))
    encode = encode_flops(sizes, frames=9, height=64, width=96, tiling=None)
    assert encode < decode < 3 * encode


@pytest.mark.parametrize(("chunk", "advised"), [(None, True), (4096, False)])
def test_generating_is_advised_pieces(tmp_path: Path, chunk: int | None, advised: bool) -> None:
    text = f"""
schema: 1
kind: generate
name: wide
model: {{path: models/CogVideoX-1.5-5b}}
prompts: a cat
video: {{height: 768, width: 1360, frames: 81}}
sampling: {{feed_forward_chunk: {"null" if chunk is None else chunk}}}
vae: {{tiling: {{tile_height: 240, tile_width: 360, overlap_height: 40, overlap_width: 72}}}}
runtime: {{device: ascend, dtype: bf16}}
"""
    (tmp_path / "r.yaml").write_text(text)
    recipe: Any = load_recipe(tmp_path / "r.yaml").recipe
    found = plan_recipe(recipe, sizes_of(recipe.model), load_profile("ascend-910b-64gb"))
    advice = [s for s in found["suggestions"] if s["change"] == "sampling.feed_forward_chunk: 4096"]
    assert bool(advice) == advised
    if advised:
        # Both passes have 2 x (11 x 48 x 85 + 226) tokens: 8 D of them in bf16 less the outputs twice; 23 pieces.
        assert advice[0]["saved"] == 3072 * 2 * (90_212 * (8 - 2) - 3_923 * 8)


def test_flops_are_shared_by_the_ranks_of_a_sample() -> None:
    whole, part = training_work(published()), training_work(published(ranks=8, sequence_parallel=8))
    assert part.model_flops == whole.model_flops // 8
    assert whole.hardware_flops > whole.model_flops


def test_suggestions_fit_first_and_say_their_price() -> None:
    profile = load_profile("ascend-910b-64gb")
    work = published(ranks=8, recompute="none")
    assert profile.memory is not None
    found = suggestions(work, profile, profile.memory)
    fitting = [s.fits for s in found]
    assert fitting == sorted(fitting, reverse=True)
    assert fitting[0]
    assert not fitting[-1]
    again = next(s for s in found if s.change == "train.recompute: all")
    assert again.slower_percent
    assert 10 < again.slower_percent < 40
    now = memory.peak(memory.training_phases(work, reserve=profile.idle or 0)).total
    assert all(s.peak + s.saved == now for s in found)


def test_every_profile_names_its_sources() -> None:
    assert names() == ["a100-80gb", "ascend-910b-64gb", "h100-80gb", "this-machine"]
    for name in names():
        assert all(load_profile(name).sources.values())
    assert load_profile("this-machine").memory


def test_a_profile_without_a_source_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "profiles" / "h100-80gb.yaml").read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text(text.replace('source: "NVIDIA H100 SXM data sheet: bf16 dense"', 'source: ""'))
    with pytest.raises(UserError, match="flops_per_second"):
        load_profile(str(bad))


def test_names_of_published_folders() -> None:
    assert published_name("models/CogVideoX-1.5-5b") == "1.5-5b"
    assert published_name("THUDM/CogVideoX1.5-5B-I2V") == "1.5-5b-i2v"
    assert published_name("CogVideoX-2b") == "2b"
    assert published_name("models/other") is None


def test_the_command_plans_the_published_recipe(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", str(SFT), "--json"]) == PASS
    data = json.loads(capsys.readouterr().out)
    assert data["fits"] is True
    assert data["peak"]["total"] == sum(data["peak"]["bytes"].values())
    assert data["time"]["step_seconds"] > 1
    assert main(["plan", str(SFT)]) == PASS
    assert "peak" in capsys.readouterr().out


def test_what_does_not_fit_ends_with_1_and_advice(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = (ROOT / "recipes" / "profiles" / "ascend-910b-64gb.yaml").read_text()
    small = tmp_path / "small.yaml"
    small.write_text(text.replace("68719476736", "17179869184"))
    assert main(["plan", str(SFT), "--profile", str(small)]) == MISMATCH
    out = capsys.readouterr().out
    assert "DOES NOT FIT" in out
    assert "1. parallel.zero_stage: 3" in out


def test_user_errors(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", str(SFT), "--profile", "b200"]) == USAGE
    assert "ascend-910b-64gb" in capsys.readouterr().err
    assert main(["plan", str(SFT), "--set", "model.path=models/mine"]) == USAGE
    assert "--model" in capsys.readouterr().err


def test_every_stage_of_the_quickstart_is_planned_or_says_why_not(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", str(ROOT / "recipes" / "quickstart.yaml"), "--json"]) == PASS
    stages = json.loads(capsys.readouterr().out)["stages"]
    # clips, before, text, video, train, generate, and two of the judge
    assert [s["planned"] for s in stages] == [False, True, True, True, True, True, False, False]
    assert all(s["reason"] for s in stages if not s["planned"])


def test_a_plan_never_imports_mindspore() -> None:
    code = f"import sys; from bench.cli import main; main(['plan', {str(SFT)!r}, '--json']); "
    code += "sys.exit('mindspore' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


LOG = """
[INFO] PRE_ACT(123,ffff,python):2026-11-25-10:00:00 [mem_dynamic_allocator.cc:500] Dump] Device HBM memory size: 62420M
[INFO] (123,python):[ascend_memory_adapter.cc:210] Used peak memory usage (without fragments): 20113M
[INFO] (123,python):[ascend_memory_adapter.cc:211] Actual peak memory usage (with fragments): 21504M
[INFO] (123,python):[ascend_memory_adapter.cc:210] Used peak memory usage (without fragments): 20480M
"""


def test_dry_run_lines() -> None:
    found = parse_peak(LOG)
    assert found["Used peak memory usage (without fragments)"] == 20480 * 2**20
    assert found["Actual peak memory usage (with fragments)"] == 21504 * 2**20
    with pytest.raises(UserError, match="GLOG_v=1"):
        parse_peak(LOG.replace("Used peak", "Some other"))


def test_a_dry_run_is_kept_beside_a_run_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With what a card's machine has standing in: the variable of CANN, and a child that prints its lines."""
    monkeypatch.setenv("ASCEND_HOME_PATH", "/usr/local/Ascend")
    jobs: list[dict[str, Any]] = []

    def child(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess:
        jobs.append(json.loads(Path(command[-1], "job.json").read_text()) | {"level": env["MS_SIMULATION_LEVEL"]})
        return subprocess.CompletedProcess(command, 0, stdout=LOG, stderr="")

    monkeypatch.setattr(subprocess, "run", child)

    def given(folder: Path, *more: str) -> list[str]:
        return ["plan", str(SFT), "--model", "1.5-5b", *more, "--into", str(folder)]

    empty, other, same = (tmp_path / name for name in ("empty", "other", "same"))
    digest = open_recipe(SFT, []).digest
    samples.write(other, recipe_digest="0" * 64)
    samples.write(same, recipe_digest=digest)
    assert main(given(empty, "--dry-run")) == USAGE
    assert "need the folder of a run of this recipe" in capsys.readouterr().err
    assert main(given(other, "--dry-run")) == USAGE
    assert "is of a recipe 000000000000" in capsys.readouterr().err
    assert jobs == [], "nothing was run in vain"
    assert main(given(same, "--dry-run")) == PASS
    assert "DryRun: 20.00 GiB at its peak" in capsys.readouterr().out
    assert [(job["kind"], job["recipe"]["train"]["steps"], job["level"]) for job in jobs] == [("train", 1, "1")]
    found = kept(same, digest)
    assert isinstance(found, dict)
    assert found["peak_bytes"] == 20480 * 2**20
    assert main(given(same)) == USAGE
    assert "without --dry-run" in capsys.readouterr().err


def test_dry_run_says_what_is_missing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    with pytest.raises(UserError, match="needs CANN"):
        refuse_without_ascend()


def test_constants_that_are_copied_from_modules_with_mindspore() -> None:
    from core import native, weights
    from core.optim import foreach

    assert (foreach.MAX_TENSORS, foreach.MAX_BYTES) == (memory.MAX_TENSORS, memory.MAX_BYTES)
    (source,) = (path.read_text() for path in native.SOURCES if path.name == "kernels_attention.cpp")
    assert "kLanes = 16;" in native.HEADERS[0].read_text()
    for line in ("kPanel = 3 * kLanes;", "kScores = 1 << 17;", "kMostQueries = 64;"):
        assert line in source
    kernel = (memory.CPU_LANES, memory.CPU_PANEL, memory.CPU_SCORES, memory.CPU_QUERIES)
    assert kernel == (16, 48, 1 << 17, 64)
    assert encoders.SMALL_BYTES == weights.SMALL_BYTES
    (source,) = (path.read_text() for path in native.SOURCES if path.name == "kernels_conv.cpp")
    assert f"kImage = 1 << {(encoders.PACKED_BYTES // 4).bit_length() - 1};" in source
