"""Checkpoint folders: strictness, damage, shards, types."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from core.checkpoint import STORED_TYPES, Checkpoint, component_folder, read_json, shards, write_checkpoint
from core.errors import UserError, WeightsError
from core.params import ParamSpec

TABLE = {"a.weight": ParamSpec(shape=(2, 3)), "a.bias": ParamSpec(shape=(2,)), "b": ParamSpec(shape=(4,))}
ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([1.5, -2], np.float32),
    "b": np.array([0.1, 1e-3, 7, -1], np.float32),
}


def _read(folder, aliases=None):
    with Checkpoint(folder) as checkpoint:
        return {n: checkpoint.tensor(s) for n, s in checkpoint.check(TABLE, aliases or {}).items()}


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("limit", [10**9, 20])
def test_write_then_read(tmp_path, dtype, limit):
    paths = write_checkpoint(tmp_path, "model", TABLE, ARRAYS.__getitem__, dtype=dtype, max_shard_bytes=limit)
    assert (len(paths) > 1) == (limit == 20)
    stored = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
    for name, value in _read(tmp_path).items():
        assert value.dtype == stored
        assert np.array_equal(value, ARRAYS[name].astype(stored))


def test_writing_again_leaves_no_old_shard(tmp_path):
    write_checkpoint(tmp_path, "model", TABLE, ARRAYS.__getitem__, max_shard_bytes=20)
    write_checkpoint(tmp_path, "model", TABLE, ARRAYS.__getitem__)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_failure_while_writing_leaves_the_old_files(tmp_path):
    write_checkpoint(tmp_path, "model", TABLE, ARRAYS.__getitem__)

    def broken(name):
        if name == "b":
            raise OSError(28, "No space left on device")
        return ARRAYS[name] * 2

    with pytest.raises(OSError, match="No space"):
        write_checkpoint(tmp_path, "model", TABLE, broken)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert np.array_equal(_read(tmp_path)["a.bias"], ARRAYS["a.bias"])


def test_every_mismatch_is_in_one_error(tmp_path):
    wrong = {"a.weight": ARRAYS["a.weight"].T.copy(), "b": np.arange(4), "extra": np.zeros(1, np.float32)}
    save_file(wrong, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as error, Checkpoint(tmp_path) as checkpoint:
        checkpoint.check(TABLE, {})
    assert error.value.problems == [
        "missing a.bias [2]",
        "unexpected extra",
        "a.weight: got shape [3, 2], need [2, 3]",
        "b: got type I64, need one of F64, F32, F16, BF16",
    ]
    assert "\n" not in str(error.value)


def test_an_alias_stands_for_its_parameter(tmp_path):
    renamed = {**ARRAYS, "copy": ARRAYS["b"]}
    del renamed["b"]
    save_file(renamed, tmp_path / "model.safetensors")
    assert np.array_equal(_read(tmp_path, {"copy": "b"})["b"], ARRAYS["b"])
    save_file({**ARRAYS, "copy": ARRAYS["b"]}, tmp_path / "model.safetensors")
    assert np.array_equal(_read(tmp_path, {"copy": "b"})["b"], ARRAYS["b"])


@pytest.mark.parametrize("cut", [1, 30, 150])
def test_a_truncated_file(tmp_path, cut):
    write_checkpoint(tmp_path, "model", TABLE, ARRAYS.__getitem__)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(WeightsError, match=r"model.safetensors is truncated or damaged .*download it again"):
        Checkpoint(tmp_path)


def test_a_file_that_is_something_else(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    with pytest.raises(WeightsError, match="truncated or damaged"):
        Checkpoint(tmp_path)


def test_missing_shards_are_all_named(tmp_path):
    write_checkpoint(tmp_path, "model", TABLE, ARRAYS.__getitem__, max_shard_bytes=20)
    shards_ = sorted(tmp_path.glob("model-*.safetensors"))
    for path in shards_[:2]:
        path.unlink()
    with pytest.raises(WeightsError) as error:
        Checkpoint(tmp_path)
    assert [p.name in str(error.value) for p in shards_] == [True, True, False]


def test_a_shard_without_what_the_index_promises(tmp_path):
    write_checkpoint(tmp_path, "model", TABLE, ARRAYS.__getitem__, max_shard_bytes=20)
    first = sorted(tmp_path.glob("model-*.safetensors"))[0]
    save_file({"other": ARRAYS["b"]}, first)
    with pytest.raises(WeightsError, match="where the index puts it"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "not a readable JSON file"),
        ("[]", "got a JSON list"),
        ("{}", "no weight_map"),
        (json.dumps({"weight_map": {"a": "../x.safetensors"}}), "need plain file names"),
    ],
)
def test_a_damaged_index(tmp_path, index, words):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=words):
        Checkpoint(tmp_path)


def test_folders_without_weights(tmp_path):
    with pytest.raises(UserError, match=r"no \*.safetensors file"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"found pytorch_model.bin: convert it"):
        Checkpoint(tmp_path)
    for name in ("a", "b"):
        save_file(ARRAYS, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="got 2 safetensors files without an index"):
        Checkpoint(tmp_path)


def test_shards_keep_order_and_limit():
    assert shards({"a": 3, "b": 3, "c": 9, "d": 1}, 6) == [["a", "b"], ["c"], ["d"]]


def test_component_folder(tmp_path):
    (tmp_path / "Transformer").mkdir()
    with pytest.raises(UserError, match=r"neither config\.json nor transformer/config\.json"):
        component_folder(tmp_path, "transformer")
    (tmp_path / "Transformer" / "config.json").write_text("{}")
    assert component_folder(tmp_path, "transformer") == tmp_path / "Transformer"
    assert component_folder(tmp_path / "Transformer", "transformer") == tmp_path / "Transformer"
    with pytest.raises(UserError, match="folder not found"):
        component_folder(tmp_path / "none", "transformer")
    assert read_json(tmp_path / "Transformer" / "config.json") == {}


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_mapped_rows_are_pages_of_the_file_that_go_with_their_array(tmp_path: Path, dtype: str) -> None:
    """Odd sizes, so that tensors begin anywhere in a page; what is written to them does not reach the file."""
    values = {name: np.arange(n, dtype=np.float32).reshape(-1, 3) for name, n in (("a", 9), ("b", 3 * 5000))}
    table = {name: ParamSpec(shape=value.shape) for name, value in values.items()}
    (path,) = write_checkpoint(tmp_path, "model", table, values.__getitem__, dtype=dtype)
    with Checkpoint(tmp_path) as checkpoint:
        before = Path("/proc/self/maps").read_text().count(str(path))
        rows = checkpoint.mapped("b", 7, 4999)
        assert rows.dtype == STORED_TYPES[dtype]
        np.testing.assert_array_equal(rows, values["b"][7:4999].astype(STORED_TYPES[dtype]))
        assert Path("/proc/self/maps").read_text().count(str(path)) > before
        assert checkpoint.bytes_read == rows.nbytes
        rows[:] = 0
        np.testing.assert_array_equal(checkpoint.tensor("b")[7:], values["b"][7:].astype(STORED_TYPES[dtype]))
        del rows
        assert Path("/proc/self/maps").read_text().count(str(path)) == before
