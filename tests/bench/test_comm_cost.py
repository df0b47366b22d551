"""The communication formulas by hand at sizes small enough for it, and the published size against published figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.comm_cost import (
    RankFlops,
    Sample,
    copies_bytes,
    forward_flops,
    layouts,
    parameter_count,
    ulysses_bytes,
    zero_bytes,
)
from bench.comm_cost_table import calibrated_rate, costs, main, published_rows, table
from core.presets import PRESETS

TINY = PRESETS["tiny-1.5"].transformer
LARGE = PRESETS["1.5-5b"].transformer
# 2 layers of 2 heads of 4: D = 8; a patch of 1.5 has 2 x 2 x 2 latents of 16 channels.
SMALL = dataclasses.replace(TINY, num_layers=2, num_attention_heads=2, attention_head_dim=16, out_channels=16)


def test_ulysses_by_hand():
    # D = 32, 2 ranks: text 3 -> 2 each, video 6 -> 3 each, 5 tokens: q, k, v 3 * 32 * 5 * 4 B = 1920, half is sent.
    got = ulysses_bytes(SMALL, Sample(text=3, video=6), 2, "none", itemsize=4)
    block = 1920 // 2 + 640 // 2
    assert (got.forward, got.backward) == (2 * block, 2 * block)
    # Output: 3 tokens of 128 numbers, sent to the one other rank.
    assert got.output == 3 * 128 * 4
    again = ulysses_bytes(SMALL, Sample(text=3, video=6), 2, "all", itemsize=4)
    assert (again.forward, again.backward) == (2 * block, 4 * block)
    assert ulysses_bytes(SMALL, Sample(text=3, video=6), 2, "keep_attention", itemsize=4) == again
    one_of_two = ulysses_bytes(SMALL, Sample(text=3, video=6), 2, "all", itemsize=4, every=2)
    assert one_of_two.backward == 3 * block
    assert again.total == 6 * block + 1536


def test_one_rank_sends_nothing():
    assert ulysses_bytes(SMALL, Sample(text=3, video=6), 1, "all").total == 0
    assert all(zero_bytes({"w": (10, 10)}, 1, stage).total == 0 for stage in range(4))


def test_zero_by_hand():
    # 4 ranks. w: 6 rows -> 8, of 10: 80 numbers; b: 4 rows; a block's c: leading one dropped, 8 rows of 2: 16.
    shapes = {"w": (6, 10), "b": (4,), "transformer_blocks.1.c": (1, 8, 2)}
    assert zero_bytes(shapes, 4, 0).total == 2 * 3 * 4 * (60 + 4 + 16) // 4
    for stage in (1, 2):
        # fp32: three quarters of 100 padded numbers scattered, as many gathered.
        assert dataclasses.astuple(zero_bytes(shapes, 4, stage)) == (300, 300)
    assert dataclasses.astuple(zero_bytes(shapes, 4, 1, micro_batches=2)) == (300, 300)
    assert dataclasses.astuple(zero_bytes(shapes, 4, 2, micro_batches=2)) == (600, 300)
    # bf16, and the block's 16 once more where it is computed again.
    assert dataclasses.astuple(zero_bytes(shapes, 4, 3)) == (300, 150)
    assert dataclasses.astuple(zero_bytes(shapes, 4, 3, recompute="all")) == (300, 150 + 24)
    assert dataclasses.astuple(zero_bytes(shapes, 4, 3, recompute="all", every=2)) == (300, 150)
    assert dataclasses.astuple(zero_bytes(shapes, 4, 3, recompute="keep_attention", micro_batches=2)) == (600, 348)


def test_copies_sum_the_gradients_of_their_parts():
    # 32 fp32 numbers: two ranks send each other half and the sum of a half; four send 2 x 3 / 4 of them.
    assert [copies_bytes(32, copies) for copies in (1, 2, 4)] == [0, 128, 192]


def test_operations_by_hand():
    # D = 32, 9 tokens, 2 layers: 24 D^2 S and 4 D S^2 each.
    whole = forward_flops(SMALL, Sample(text=3, video=6))
    assert (whole.linear, whole.attention) == (2 * 24 * 1024 * 9, 2 * 4 * 32 * 81)
    half = forward_flops(SMALL, Sample(text=4, video=6), 2)
    assert (half.linear, half.attention) == (2 * 24 * 1024 * 5, 2 * 4 * 32 * 100 // 2)
    flops = RankFlops(linear=10, attention=5)
    assert (flops.step("none"), flops.step("keep_attention"), flops.step("all")) == (45, 55, 60)


def test_the_published_size_has_the_published_tokens_and_operations():
    sample = Sample.of(LARGE, frames=77, height=768, width=1360, text=224)
    assert (sample.video, sample.text) == (40_800, 224)
    # 1.259 PFLOP forward from 42 (24 d^2 L + 4 d L^2), docs of the facts at hand.
    assert forward_flops(LARGE, sample).linear + forward_flops(LARGE, sample).attention == pytest.approx(1.259e15, 1e-3)
    assert Sample.of(LARGE, frames=81, height=768, width=1360, text=226).video == 44_880, "21 latent frames are padded"


def test_layouts_share_the_work_and_pay_in_messages():
    rows = layouts(LARGE, Sample(text=224, video=40_800), 8, (8, 4, 2, 1))
    assert [row.name for row in rows] == ["SP8", "SP4 x DP2", "SP2 x DP4", "DP8"]
    for row in rows:
        assert row.flops.step("all") * row.mesh.sequence == rows[-1].flops.step("all")
    assert len({row.zero[2, "all"].total for row in rows}) == 1, "ZeRO spans all cards in every layout"
    sent = [row.ulysses["none"].total for row in rows]
    assert sent == [*sorted(sent[:3]), 0], "fewer ranks hold more tokens each"
    computing, sending = rows[0].seconds("all", 2, 1e14, 1e11)
    assert computing == rows[0].flops.step("all") / 1e14
    assert sending == (rows[0].ulysses["all"].total + rows[0].zero[2, "all"].total) / 1e11


def test_the_published_rows_are_those_of_the_file():
    rows = {n: (row.seconds, row.gigabytes) for n, row in published_rows().items()}
    assert rows == {8: (5.16, 8.2), 4: (10.1, 14.6), 2: (20.9, 19.9), 1: (39.23, 35.6)}
    # The step that shares nothing sets the rate, so it leaves nothing.
    assert calibrated_rate(costs(), published_rows(), "none") == costs()[-1].flops.step("none") / 39.23


def test_the_page_has_the_table_that_the_command_prints(capsys):
    page = (Path(__file__).resolve().parents[2] / "docs/design/012-launch-and-cost.md").read_text()
    main([])
    printed = capsys.readouterr().out
    assert page.split("<!-- comm cost: begin -->\n")[1].split("<!-- comm cost: end -->")[0] == printed
    assert printed not in page.replace("29.25", "38.99"), "another figure would be seen"


def test_the_table_is_written_between_its_marks_only(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- comm cost: begin -->\nold\n<!-- comm cost: end -->\nafter\n")
    main(["--doc", str(page)])
    assert page.read_text() == (f"before\n<!-- comm cost: begin -->\n{table()}\n<!-- comm cost: end -->\nafter\n")
    main([])
    assert capsys.readouterr().out == table() + "\n"
    assert f"{parameter_count(LARGE):,}" in table()
    with pytest.raises(SystemExit):
        main(["--flops", "1e14"])
    assert "need --flops and --link together" in capsys.readouterr().err
