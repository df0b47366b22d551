"""bf16 and fp16 parameters with fp32 masters in shards: the bits of one process, and the plan's bytes."""

from __future__ import annotations

import functools
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from bench.comm_cost import trained_shapes, zero_bytes
from bench.plan import memory
from bench.plan.workload import Training
from core import ops
from core.lora_spec import ModuleRank, adapter_table, find_layers
from core.parallel.collectives import alone
from core.transformer.model import Recompute
from core.transformer.parameters import parameter_table
from tests.distributed import half_cases as cases
from tests.distributed.ranks import run_ranks
from tests.distributed.train_cases import CONFIG, LORA
from tests.tolerances import BF16_ROUNDING, MODULE, relative_error


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_ranks("tests.distributed.half_cases", 2, tmp_path_factory.mktemp("ranks"))


@functools.cache
def _single(dtype: str, steps: int, recompute: Recompute = "none"):
    ops.configure()
    trained = cases.training(alone(), 0, dtype)
    trained.model.recompute(recompute)
    return cases.result(trained, steps)


@pytest.mark.parametrize(("dtype", "stage"), list(cases.RUNS))
def test_losses_and_parameters_are_those_of_one_process(results, dtype, stage):
    # What is computed again comes in another order, on one process too.
    want = _single(dtype, cases.RUNS[dtype, stage], "all" if stage == 3 else "none")
    for found in results.of("half"):
        key = f"{dtype}/{stage}"
        # A loss is the mean of two ranks' in fp32, in one process in fp64.
        assert np.abs(found[f"{key}/curve"][:, 0] / want["curve"][:, 0] - 1).max() <= 1e-6
        assert np.array_equal(found[f"{key}/values"], want["values"])
        if stage != 3:
            assert np.array_equal(found[f"{key}/whole"], want["whole"])


@pytest.mark.parametrize(("stage", "optimizer"), cases.CLIPPED)
def test_clipped_training_is_that_of_one_process(results, stage, optimizer):
    """The norm is a sum in another order, so masters may differ by fp32's rounding, and with them a rounded weight."""
    want = _clipped(optimizer, "all" if stage == 3 else "none")
    assert (want["curve"][:, 1] > cases.MAX_NORM).all(), "every step is clipped"
    for found in results.of("clipped"):
        assert relative_error(found[f"{stage}/curve"], want["curve"]) <= MODULE
        assert relative_error(found[f"{stage}/values"], want["values"]) <= MODULE


@functools.cache
def _clipped(optimizer: str, recompute: Recompute):
    ops.configure()
    trained = cases.training(alone(), 0, "bf16", optimizer, max_grad_norm=cases.MAX_NORM)
    trained.model.recompute(recompute)
    return cases.result(trained, cases.CLIPPED_STEPS)


def test_ranks_that_share_a_sample_round_their_own_gradients_once(results):
    """Bit by bit. One process rounds the sum instead of two summands, so its training is near, not equal."""
    want = _single("bf16", cases.SHARED_STEPS)
    ranks = results.of("shared")
    for found in ranks:
        assert found["parts"].any()
        assert np.array_equal(found["parts"], found["wanted"])
        assert np.array_equal(found["whole"], ranks[0]["whole"])
        assert relative_error(found["curve"][:1, 0], want["curve"][:1, 0]) <= MODULE
        assert relative_error(found["curve"], want["curve"]) <= BF16_ROUNDING


def test_masters_keep_what_the_rounded_parameters_lose():
    want = _single("bf16", 6)
    rounded = ms.Tensor(want["values"]).astype(ms.bfloat16).astype(ms.float32).asnumpy()
    assert np.array_equal(rounded, want["whole"])
    assert (want["values"] != want["whole"]).mean() > 0.9


@pytest.mark.parametrize("stage", range(4))
def test_parameters_travel_in_bf16_and_gradients_in_fp32(results, stage):
    recompute: Any = "all" if stage == 3 else "none"
    expected = zero_bytes(trained_shapes(CONFIG), 2, stage, recompute=recompute, stored_size=2, computed_size=2)
    for found in results.of("half"):
        assert found[f"bf16/{stage}/sent"].tolist() == [expected.gradients, expected.parameters]


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize(("optimizer", "method"), [("adamw", "sft"), ("came", "sft"), ("adamw", "lora")])
def test_bytes_of_live_tensors_are_those_of_the_plan(results, optimizer, method, stage):
    table, lora = parameter_table(CONFIG), None
    if method == "lora":
        layers = find_layers(table, LORA.targets)
        lora = adapter_table(table, dict.fromkeys(layers, ModuleRank(rank=LORA.rank, alpha=1.0)))
    work = Training(
        config=CONFIG, frames=2, height=6, width=10, text_tokens=3, ranks=2, zero_stage=stage, stored=2,
        computed=4, masters=lora is None, lora=lora, optimizer=optimizer, code="cpu",
    )  # fmt: skip
    planned = memory.training_phases(work)[-1].bytes
    key = f"bf16/{stage}" if (optimizer, method) == ("adamw", "sft") else f"{optimizer}/{method}/{stage}"
    for found in results.of("half"):
        held = dict(zip(cases.CLASSES, found[f"{key}/held"].tolist(), strict=True))
        assert held == {name: planned.get(name, 0) for name in cases.CLASSES}
