"""The plan's formulas against the stored high-water marks: a formula that drifts from the code fails here."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bench.plan import child, encoders, measured, memory
from bench.plan.workload import Sizes, elements, training_of
from bench.recipe_access import open_recipe
from core.presets import PRESETS

DEVICES = ("ascend", "cpu")
STORED = json.loads(measured.STORED.read_text(encoding="utf-8"))


def problems() -> list[str]:
    """What the gate says of the stored cases."""
    return measured.failures(measured.compare(STORED))


def test_stored_cases_are_within_the_bound() -> None:
    assert problems() == []
    assert len(STORED["cases"]) >= 12


@pytest.mark.parametrize("name", ["backward_bytes", "optimizer_bytes", "kept_between_passes"])
def test_a_changed_formula_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    formula = getattr(memory, name)
    monkeypatch.setattr(memory, name, lambda *given, **named: 2 * formula(*given, **named))
    assert problems()


def test_a_process_that_needs_more_is_refused() -> None:
    more = {**STORED, "cases": {n: {**c, "peak": round(1.25 * c["peak"])} for n, c in STORED["cases"].items()}}
    assert len(measured.failures(measured.compare(more))) >= len(STORED["cases"]) - 1


def test_live_bytes_that_differ_are_refused() -> None:
    cases = {n: dict(c) for n, c in STORED["cases"].items()}
    name = next(iter(cases))
    key = "live" if "live" in cases[name] else "live_mib"
    cases[name][key] = {k: v + 1 for k, v in cases[name][key].items()}
    assert any("live bytes" in text for text in measured.failures(measured.compare({**STORED, "cases": cases})))


def test_few_cases_say_nothing() -> None:
    missing = [f"{name}: not measured" for name in (*measured.CASES, *measured.TEXT_CASES)]
    assert measured.failures([]) == [*missing, "0 cases, need 12"]


@pytest.mark.parametrize("name", ["TEXT_BIASES", "TEXT_HIDDEN", "TEXT_STREAMS"])
def test_a_changed_formula_of_the_text_encoder_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(encoders, name, 4 * getattr(encoders, name))
    assert any(text.startswith("text:") for text in problems())


def test_gradients_under_way_by_hand() -> None:
    """A bucket and its sum, of which parts are cut; no more than there is; above stage 1 a block."""
    shape, values = measured.CASES["2 ranks, ZeRO 0"]
    preset = PRESETS["tiny-1.5"]
    sizes = Sizes(transformer=replace(preset.transformer, **shape), vae=preset.vae, text=preset.text, source="")
    work = training_of(open_recipe(measured.RECIPE, values).recipe, sizes)
    block = 4 * elements(memory._block(work, 0))
    assert memory.message_bytes(work) == 2 * 2**22
    assert memory.message_bytes(replace(work, zero_stage=1)) == 2**22 + 2**21
    assert memory.message_bytes(replace(work, zero_stage=1, code="ascend")) == 2**26 + 2**25
    assert memory.message_bytes(replace(work, zero_stage=2)) == memory.message_bytes(replace(work, zero_stage=3))
    assert memory.message_bytes(replace(work, zero_stage=2)) == block + block // 2
    assert memory.message_bytes(replace(work, ranks=1)) == 0
    assert memory.message_bytes(replace(work, code="mindone")) == 0


def test_the_text_phase_by_hand() -> None:
    config = replace(PRESETS["tiny-1.5"].text, d_model=4, d_ff=8, num_heads=2)
    on = {device: encoders.text_phase(config, batch=3, tokens=5, itemsize=2, device=device) for device in DEVICES}
    rows, bias = 3 * 5 * 2, 4 * 2 * 5 * 5
    assert on["ascend"].bytes["text encoder"] == rows * (2 * 4 + 3 * 8) + 2 * 3 * bias
    assert on["cpu"].bytes["text encoder"] == rows * (6 * 4 + 5 * 8) + bias


def test_every_case_is_a_valid_recipe() -> None:
    assert len(measured.CASES) >= 12
    assert all(measured.predicted(name)["peak"] > 0 for name in measured.CASES)


def test_the_counting_optimiser_answers_what_the_step_asks() -> None:
    inner = SimpleNamespace(parameters=[], exchanged=lambda: [3])
    assert child._Counting(inner, {}).exchanged() == [3]
