"""The comparison with published systems: derived columns by hand, ours never blank or zero."""

from __future__ import annotations

import pytest

from reports import derived
from reports.collect import collect
from reports.comparison import comparison_tables
from reports.published import read_published
from tests.reports import samples

FIGURES = read_published()


def _figure(**wanted):
    (found,) = [f for f in FIGURES if all(f.cells[key] == value for key, value in wanted.items())]
    return found


SEED = {"system": "Efficient CogVideoX (seed, MindSpore 2.4.0)", "task": "sft"}
FACTORY = {
    "system": "mindone cogvideox_factory (MindSpore 2.6/2.7)", "task": "sft", "model": "CogVideoX1.5-5B T2V",
    "memory_opts": "VAE cache ON, recompute", "devices": "8",
}  # fmt: skip


def test_cost_of_a_forward_pass_by_hand():
    """42 (24 3072^2 45106 + 4 3072 45106^2) = 4.291e14 + 1.0500e15; PromptTea publishes 150.12 PFLOP for 100 passes."""
    arch = derived.architecture("CogVideoX1.5-5B T2V")
    assert arch is not None
    assert arch == derived.Architecture(layers=42, width=3072, patch_t=2)
    tokens = derived.sequence(arch, 768, 1360, 81)
    assert tokens == 226 + 11 * 48 * 85 == 45106
    assert derived.forward_flops(arch, tokens) == 42 * (24 * 3072**2 * 45106 + 4 * 3072 * 45106**2)
    assert 100 * derived.forward_flops(arch, tokens) == pytest.approx(150.12e15, rel=0.016)
    linear, attention = derived.linear_flops(arch, tokens), derived.attention_flops(arch, tokens)
    assert derived.training_flops(arch, tokens, lora=False) == 3 * (linear + attention)
    assert derived.training_flops(arch, tokens, lora=True) == 2 * linear + 3 * attention


def test_the_older_models_have_a_token_per_latent_frame():
    arch = derived.architecture("CogVideoX-2B")
    assert arch is not None
    assert arch == derived.Architecture(layers=30, width=1920, patch_t=1)
    assert derived.sequence(arch, 480, 720, 49) == 226 + 13 * 30 * 45


@pytest.mark.parametrize(
    "model", ["HunyuanVideo", "ConsisID (CogVideoX-5B based)", "CogVideoX 3D VAE", "CogVideoX1.5-5B + x"]
)
def test_other_models_have_no_cost(model):
    assert derived.architecture(model) is None


@pytest.mark.parametrize(
    ("wanted", "rate", "speed"),
    [
        (SEED, 1 / 10.2 / 8, 46),
        (FACTORY | {"parallelism": "DP1 x SP8, ZeRO-3"}, 1 / 5.16 / 8, 91),
        (FACTORY | {"parallelism": "DP8 x SP1, ZeRO-3"}, 8 / 39.23 / 8, 96),
    ],
)
def test_training_rows_by_hand(wanted, rate, speed):
    """The three speeds as worked out by others for the same rows (model TFLOP/s per card, rounded)."""
    figure = _figure(**wanted)
    assert derived.training_rate(figure).value == pytest.approx(rate)
    assert round((derived.training_speed(figure).value or 0) / 1e12) == speed


def test_inference_rows_by_hand():
    vanilla = _figure(system="PromptTea", memory_opts="none")
    assert derived.seconds_per_video(vanilla).value == 485.84
    assert round((derived.inference_speed(vanilla).value or 0) / 1e12) == 304
    assert "skips work" in derived.inference_speed(_figure(system="PromptTea", memory_opts="PromptTea")).reason
    factory = _figure(system=FACTORY["system"], task="inference")
    assert (derived.seconds_per_video(factory).value, derived.card_seconds(factory).value) == (300, 2400)
    sage = _figure(system="SageAttention", attention="FlashAttention2")
    assert derived.seconds_per_video(sage).value == 1534
    bound = _figure(system="xDiT", model="CogVideoX1.5-5B")
    assert "bound" in derived.seconds_per_video(bound).reason


def test_a_derived_value_has_a_number_or_a_reason():
    for figure in FIGURES:
        every = (derived.training_rate, derived.training_speed, derived.card_seconds, derived.inference_speed)
        for found in (function(figure) for function in every):
            assert (found.value is None) == bool(found.reason)
            assert found.value is None or found.value > 0


def test_without_a_card_ours_is_not_measured_and_names_its_recipe():
    for table in comparison_tables(()):
        ours = [row for row in table.rows if row[0].text.startswith("CogBench")]
        assert ours
        for row in ours:
            texts = [cell.text for cell in row]
            assert "not measured (no Ascend card here)" in texts
            assert all(text not in ("", "0") for text in texts)
            assert texts[-1].startswith("recipes/ascend910/")


def test_every_published_row_is_there_with_its_source():
    tables = comparison_tables(())
    rows = [
        row for table in tables for row in (*table.rows, *table.more_rows) if not row[0].text.startswith("CogBench")
    ]
    assert len(rows) == len(FIGURES)
    assert all(row[-1].text for row in rows)
    memory = [table.columns.index("peak memory per card") for table in tables]
    published = {row[memory[0]].text for row in tables[0].rows}
    assert {"8.2 GB", "not measured (no Ascend card here)"} <= published  # GB stays GB


def _train(tmp_path, device: str, **more):
    recipe = {
        "kind": "train", "runtime": {"device": device, "workers": 2}, "train": {"method": "sft"},
        "model": {"path": "models/CogVideoX1.5-5B"}, "video": {"height": 768, "width": 1360, "frames": 77},
        "text": {"max_length": 224},
    }  # fmt: skip
    samples.write(tmp_path, "train", "invented-sft", recipe=recipe, steps=samples.steps(20), **more)
    return collect([tmp_path]).runs


def test_our_own_record_takes_the_place_of_not_measured(tmp_path):
    table, _ = comparison_tables(_train(tmp_path, "ascend"))
    row = dict(zip(table.columns, table.rows[0], strict=True))
    rate = collect([tmp_path]).runs[0].number("summary.samples_per_second") or 0
    assert row["samples/s per card (derived)"].sort == pytest.approx(rate / 2)
    tokens = 224 + 10 * 48 * 85
    cost = 3 * 42 * (24 * 3072**2 * tokens + 4 * 3072 * tokens**2)
    assert row["model TFLOP/s per card (derived)"].sort == pytest.approx(rate / 2 * cost)
    assert row["peak memory per card"].text == "1.50 GiB of the process"
    resolutions = [(r[2].text, r[3].text) for r in table.rows if r[0].text.startswith("CogBench")]
    assert resolutions == [("768x1360", "77"), ("768x1360", "81")]  # the LoRA is still not measured


def test_a_run_on_the_cpu_is_no_run_on_a_card(tmp_path):
    table, _ = comparison_tables(_train(tmp_path, "cpu"))
    ours = [row for row in table.rows if row[0].text.startswith("CogBench")]
    assert len(ours) == 3
    assert ours[0][4].text == "1"
