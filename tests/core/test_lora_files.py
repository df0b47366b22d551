"""LoRA files: what comes back, names and settings of other writers, every fault in one error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from core.errors import UserError, WeightsError
from core.lora import attached, load_lora, save_lora
from core.lora_files import WEIGHTS_NAME
from core.lora_spec import LoRAConfig, ModuleRank
from tests.core.lora_helpers import adapted_model, output_of, plain_model
from tests.tolerances import relative_error


def test_files_come_back_bit_for_bit(tmp_path):
    model, lora = adapted_model()
    path = save_lora(lora, tmp_path)
    assert path == tmp_path / WEIGHTS_NAME
    assert {name.split(".")[0] for name in load_file(path)} == {"transformer"}
    again = load_lora(plain_model(), tmp_path)
    assert again.alpha_from == "metadata"
    assert (again.config.rank, again.config.alpha, again.modules) == (3, 2.0, lora.modules)
    for name, value in lora.arrays().items():
        assert np.array_equal(again.arrays()[name], value)
    assert np.array_equal(output_of(again.model), output_of(model))
    save_lora(again, tmp_path / "second")
    assert load_lora(plain_model(), tmp_path / "second").modules == lora.modules


def _rewritten(tmp_path, change, metadata=None):
    """A saved LoRA whose tensors ``change`` renames, drops or adds."""
    _, lora = adapted_model(LoRAConfig(rank=3, alpha=6.0))
    path = save_lora(lora, tmp_path)
    with safe_open(path, framework="np") as handle:
        kept = handle.metadata()
    tensors = load_file(path)
    save_file(change(tensors), path, kept if metadata is None else metadata)
    return lora


def test_without_metadata_alpha_is_the_rank(tmp_path):
    lora = _rewritten(tmp_path, lambda tensors: tensors, {"format": "pt"})
    plain = load_lora(plain_model(), tmp_path)
    assert plain.alpha_from == "none: equal to the rank"
    assert set(plain.modules.values()) == {ModuleRank(rank=3, alpha=3.0)}
    # The file of a trainer that keeps alpha to itself: its user gives alpha / rank.
    plain.scale = 2.0
    assert relative_error(output_of(plain.model), output_of(lora.model)) <= 1e-6


def _renamed(name, old, new):
    for before, after in zip(old, new, strict=True):
        name = name.replace(before, after)
    return name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((), ()),
        (("transformer.transformer_blocks",), ("transformer_blocks",)),
        (("transformer.transformer_blocks",), ("base_model.model.transformer_blocks",)),
        (("lora_A", "lora_B"), ("lora_A.default", "lora_B.default")),
        (("lora_A", "lora_B"), ("lora.down", "lora.up")),
        (("lora_A", "lora_B"), ("lora_down", "lora_up")),
        (("to_out.0.", ".lora_A", ".lora_B"), ("to_out.", "_lora.down", "_lora.up")),
    ],
)
def test_names_of_other_writers_and_alpha_tensors(old, new, tmp_path):
    def change(tensors):
        alphas = {n.replace(".lora_A.weight", ".alpha"): np.float32(6) for n in tensors if ".lora_A." in n}
        every = {**tensors, **{n: np.array(v) for n, v in alphas.items()}}
        return {_renamed(name, old, new): value for name, value in every.items()}

    lora = _rewritten(tmp_path, change, {"format": "pt"})
    again = load_lora(plain_model(), tmp_path)
    assert again.alpha_from == "alpha tensors"
    assert again.modules == lora.modules
    assert np.array_equal(output_of(again.model), output_of(lora.model))


def test_every_fault_of_a_file_in_one_error(tmp_path):
    names = [f"transformer.transformer_blocks.{i}.attn1.to_q.lora_{ab}.weight" for i in (0, 1) for ab in "AB"]

    def change(tensors):
        changed = {n: v for n, v in tensors.items() if n != names[0] and ".1.attn1.to_k" not in n}
        changed["transformer.no_such_layer.lora_A.weight"] = np.zeros((3, 4), np.float32)
        changed["transformer.transformer_blocks.0.attn1.to_q.lora_B.bias"] = np.zeros(4, np.float32)
        changed[names[3]] = np.zeros((5, 3), np.float32)
        changed[names[2]] = changed[names[2]].astype(np.int32)
        return changed

    _rewritten(tmp_path, change)
    model = plain_model()
    with pytest.raises(WeightsError) as caught:
        load_lora(model, tmp_path)
    text = "\n".join(caught.value.problems)
    for words in (
        "unexpected transformer.no_such_layer.lora_A.weight",
        "unexpected transformer.transformer_blocks.0.attn1.to_q.lora_B.bias",
        f"missing {names[0].removeprefix('transformer.')} [3, 32]",
        "missing transformer_blocks.1.attn1.to_k.lora_A.weight and",
        f"{names[3].removeprefix('transformer.')}: got shape [5, 3], need [32, 3]",
        f"{names[2]}: got type I32",
    ):
        assert words in text
    assert len(caught.value.problems) == 6
    assert attached(model) is None
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transformer.use_dora": True}, "use_dora"),
        ({"transformer.peft_type": "LOKR"}, "need LORA"),
        ({"transformer.lora_alpha": -1}, "got alpha -1, need a positive number"),
        (None, "is not JSON"),
    ],
)
def test_settings_that_are_not_supported(settings, words, tmp_path):
    text = "{" if settings is None else json.dumps(settings)
    _rewritten(tmp_path, lambda tensors: tensors, {"lora_adapter_metadata": text})
    with pytest.raises(WeightsError, match=words):
        load_lora(plain_model(), tmp_path)


def test_files_that_are_not_there(tmp_path):
    for path, words in ((tmp_path / "none", "not found"), (tmp_path, f"no {WEIGHTS_NAME}")):
        with pytest.raises(UserError, match=words):
            load_lora(plain_model(), path)
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(UserError, match="a pickle, which is not read"):
        load_lora(plain_model(), tmp_path)
    with pytest.raises(UserError, match=r"got a \.bin file, need safetensors"):
        load_lora(plain_model(), tmp_path / "pytorch_lora_weights.bin")
    (tmp_path / WEIGHTS_NAME).write_bytes(b"\x10\x00")
    with pytest.raises(WeightsError, match="truncated or damaged"):
        load_lora(plain_model(), tmp_path)
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "none.safetensors")
    (tmp_path / WEIGHTS_NAME).unlink()
    with pytest.raises(WeightsError, match="no LoRA tensors in it"):
        load_lora(plain_model(), tmp_path)
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="got 2 safetensors files"):
        load_lora(plain_model(), tmp_path)
