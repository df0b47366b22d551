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


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_ranks("tests.distributed.half_cases", 2, tmp_path_factory.mktemp("ranks")).of("half")


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
    for found in results:
        key = f"{dtype}/{stage}"
        # A loss is the mean of two ranks' in fp32, in one process in fp64.
        assert np.abs(found[f"{key}/curve"][:, 0] / want["curve"][:, 0] - 1).max() <= 1e-6
        assert np.array_equal(found[f"{key}/values"], want["values"])
        if stage != 3:
            assert np.array_equal(found[f"{key}/whole"], want["whole"])


def test_masters_keep_what_the_rounded_parameters_lose():
    want = _single("bf16", 6)
    rounded = ms.Tensor(want["values"]).astype(ms.bfloat16).astype(ms.float32).asnumpy()
    assert np.array_equal(rounded, want["whole"])
    assert (want["values"] != want["whole"]).mean() > 0.9


@pytest.mark.parametrize("stage", range(4))
def test_parameters_travel_in_bf16_and_gradients_in_fp32(results, stage):
    recompute: Any = "all" if stage == 3 else "none"
    expected = zero_bytes(trained_shapes(cases.EVEN), 2, stage, recompute=recompute, stored_size=2, computed_size=2)
    for found in results:
        assert found[f"bf16/{stage}/sent"].tolist() == [expected.gradients, expected.parameters]


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize(("optimizer", "method"), [("adamw", "sft"), ("came", "sft"), ("adamw", "lora")])
def test_bytes_of_live_tensors_are_those_of_the_plan(results, optimizer, method, stage):
    table, lora = parameter_table(cases.EVEN), None
    if method == "lora":
        layers = find_layers(table, cases.LORA.targets)
        lora = adapter_table(table, dict.fromkeys(layers, ModuleRank(rank=cases.LORA.rank, alpha=1.0)))
    work = Training(
        config=cases.EVEN, frames=2, height=6, width=10, text_tokens=3, ranks=2, zero_stage=stage, stored=2,
        computed=4, masters=lora is None, lora=lora, optimizer=optimizer, code="cpu",
    )  # fmt: skip
    planned = memory.training_phases(work)[-1].bytes
    key = f"bf16/{stage}" if (optimizer, method) == ("adamw", "sft") else f"{optimizer}/{method}/{stage}"
    for found in results:
        held = dict(zip(cases.CLASSES, found[f"{key}/held"].tolist(), strict=True))
        assert held == {name: planned.get(name, 0) for name in cases.CLASSES}
