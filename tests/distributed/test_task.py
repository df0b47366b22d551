"""Checkpoints of the training task: the same bits at the same layout, the same curve at another."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from core import ops, weights
from core.train import checkpoint
from tests.distributed import task_cases as cases
from tests.distributed.ranks import run_ranks
from tests.tolerances import MODULE, relative_error


@pytest.fixture(scope="module", params=[2])
def results(request, tmp_path_factory):
    return run_ranks("tests.distributed.task_cases", request.param, tmp_path_factory.mktemp("ranks"))


def _weights(folder) -> np.ndarray:
    model = weights.load_transformer(folder)
    return np.concatenate([weights.parameter_array(model, name).ravel() for name in model.table])


def test_the_same_layout_goes_on_with_the_same_bits(results):
    for found in results.of("task"):
        assert np.array_equal(found["same/curve"], found["whole/curve"][cases.HALF :])
    assert np.array_equal(_weights(results.folder / "same/transformer"), _weights(results.folder / "whole/transformer"))


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
