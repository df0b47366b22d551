"""Checkpoints of the training task: the same bits at the same layout, the same curve at another."""

from __future__ import annotations

import shutil

import mindspore as ms
import numpy as np
import pytest

from core import ops, weights
from core.train import checkpoint
from tests.distributed import task_cases as cases
from tests.distributed.ranks import run_ranks
from tests.tolerances import MODULE, relative_error


@pytest.fixture(scope="module", params=[2])
def results(request, tmp_path_factory):
    return run_ranks("tests.distributed.task_cases", request.param, tmp_path_factory.mktemp("ranks"), "task", "online")


def _weights(folder) -> np.ndarray:
    model = weights.load_transformer(folder)
    return np.concatenate([weights.parameter_array(model, name).ravel() for name in model.table])


def test_the_same_layout_goes_on_with_the_same_bits(results):
    for found in results.of("task"):
        assert np.array_equal(found["same/curve"], found["whole/curve"][cases.HALF :])
    assert np.array_equal(_weights(results.folder / "same/transformer"), _weights(results.folder / "whole/transformer"))


def test_the_same_layout_in_bf16_goes_on_with_the_same_bits_and_exports_masters(results):
    for found in results.of("task"):
        assert np.array_equal(found["bf16-same/curve"], found["bf16/curve"][cases.HALF :])
    same, whole = (_weights(results.folder / name / "transformer") for name in ("bf16-same", "bf16"))
    assert np.array_equal(same, whole)
    rounded = ms.Tensor(whole).astype(ms.bfloat16).astype(ms.float32).asnumpy()
    assert (rounded != whole).mean() > 0.5


def test_clips_encoded_in_the_loop_by_two_ranks_train_as_by_one(results, tmp_path):
    found = results.of("online")
    ops.configure()
    recipe = cases.online_recipe(results.folder / "online-world", 1)
    want = np.array(cases.run(recipe, tmp_path / "online", tmp_path / "online.jsonl"))
    for rank in found:
        assert relative_error(rank["curve"], want) <= MODULE
    two, one = (_weights(folder / "online" / "transformer") for folder in (results.folder, tmp_path))
    assert relative_error(two, one) <= MODULE


def test_eight_ranks_then_four_then_one_go_on_with_the_same_curve(tmp_path):
    """sp2 x dp4 by ZeRO-2, sp2 x dp2 by ZeRO-3, one process: each goes on from the last one's checkpoint."""
    module = "tests.distributed.task_cases"
    eight = run_ranks(module, 8, tmp_path / "8", "chain").of("chain")
    shutil.copytree(tmp_path / "8" / "world", tmp_path / "4" / "world")
    cases.begin(tmp_path / "8" / "run", 1, tmp_path / "4" / "run")
    four = run_ranks(module, 4, tmp_path / "4", "chain").of("chain")
    cases.begin(tmp_path / "4" / "run", 2, tmp_path / "1" / "run")
    ops.configure()
    world = tmp_path / "4" / "world"
    recipe = cases.recipe(world, 1, *cases.CHAIN[1], True, every=1, samples=cases.CHAIN_SAMPLES)
    one = np.array(cases.run(recipe, tmp_path / "1" / "run", tmp_path / "1.jsonl"))
    whole = eight[0]["curve"]
    assert len(whole) == cases.STEPS
    for found in four:
        assert relative_error(found["curve"], whole[1:]) <= MODULE
    assert relative_error(one, whole[2:]) <= MODULE
    last = [_weights(tmp_path / name / "run" / "transformer") for name in ("8", "4", "1")]
    assert relative_error(last[1], last[0]) <= MODULE
    assert relative_error(last[2], last[0]) <= MODULE


def test_another_layout_goes_on_with_the_same_curve(results):
    for found in results.of("task"):
        assert relative_error(found["stage3/curve"], found["whole/curve"][cases.HALF :]) <= MODULE
    stage3, whole = (_weights(results.folder / name / "transformer") for name in ("stage3", "whole"))
    assert relative_error(stage3, whole) <= MODULE


def test_one_process_goes_on_and_ends_the_same(results, tmp_path):
    results.of("task")
    ops.configure()
    out = tmp_path / "one"
    out.mkdir()
    name = f"checkpoint-{cases.HALF:06d}"
    shutil.copytree(results.folder / "whole" / name, out / name)
    data = cases.recipe(results.folder / "world", 1, 1, 0, True)
    curve = cases.run(data, out, tmp_path / "one.jsonl")
    assert relative_error(curve, results.of("task")[0]["whole/curve"][cases.HALF :]) <= MODULE
    assert relative_error(_weights(out / "transformer"), _weights(results.folder / "whole/transformer")) <= MODULE
    for export in ("transformer", "transformer_ema"):
        assert relative_error(_weights(out / export), _weights(results.folder / "whole" / export)) <= MODULE


def test_each_rank_writes_its_rows_and_nothing_is_left_over(results):
    results.of("task")
    folder = checkpoint.newest(results.folder / "whole")
    assert folder is not None
    parts = sorted(path.name for path in folder.glob("part-*"))
    assert parts == [f"part-{rank:05d}-of-{results.ranks:05d}.safetensors" for rank in range(results.ranks)]
    assert not list((results.folder / "whole").glob(".checkpoint-*"))
