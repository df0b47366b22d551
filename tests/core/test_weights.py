"""Loading and saving models: the errors a user meets, and that nothing changes on the way."""

from __future__ import annotations

import json
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from core import weights
from core.errors import UserError, WeightsError
from core.presets import PRESETS
from core.text.t5 import T5EncoderModel
from core.transformer.model import CogVideoXTransformer3DModel
from core.vae.model import AutoencoderKLCogVideoX

PRESET = PRESETS["tiny-1.5"]
CONFIG = replace(PRESET.transformer, num_layers=1)


@pytest.fixture
def folder(tmp_path):
    weights.save_transformer(CogVideoXTransformer3DModel(CONFIG).initialize(0), tmp_path / "transformer")
    return tmp_path


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_what_is_saved_is_loaded(tmp_path, dtype):
    models = (
        (CogVideoXTransformer3DModel(CONFIG), weights.save_transformer, weights.load_transformer),
        (AutoencoderKLCogVideoX(PRESET.vae), weights.save_vae, weights.load_vae),
        (T5EncoderModel(PRESET.text), weights.save_text_encoder, weights.load_text_encoder),
    )
    for number, (model, save, load) in enumerate(models):
        save(model.initialize(number), tmp_path / str(number), dtype, max_shard_bytes=100_000)
        loaded = load(tmp_path / str(number))
        assert loaded.config == model.config
        assert set(loaded.source_types) == {{"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[dtype]}
        if dtype == "fp32":
            assert weights.parameter_digest(loaded) == weights.parameter_digest(model)
        else:
            name = next(iter(model.table))
            kept, given = weights.parameter_array(loaded, name), weights.parameter_array(model, name)
            assert np.allclose(kept, given, rtol=1e-2, atol=1e-3)


def test_the_digest_sees_one_changed_bit(folder):
    model = weights.load_transformer(folder)
    before = weights.parameter_digest(model)
    bias = weights.parameter_array(model, "proj_out.bias")
    bias[0] = np.nextafter(bias[0], np.float32(2), dtype=np.float32)
    model.assign("proj_out.bias", bias)
    assert weights.parameter_digest(model) != before


def test_a_wrong_config_value_names_the_file(folder):
    path = folder / "transformer" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "num_layers": "one"}))
    with pytest.raises(UserError, match=r"config\.json: num_layers: got 'one', need int"):
        weights.load_transformer(folder)
    path.write_text(json.dumps({**values, "num_layers": 2}))
    with pytest.raises(WeightsError, match=r"missing transformer_blocks\.1\."):
        weights.load_transformer(folder)


def test_a_truncated_file_is_one_error(folder):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        weights.load_transformer(folder)


def test_weights_of_another_architecture_list_every_difference(folder):
    with pytest.raises(WeightsError) as error:
        weights.load_into(CogVideoXTransformer3DModel(replace(CONFIG, patch_size_t=None)), folder / "transformer")
    assert any(p.startswith("patch_embed.proj.weight: got shape") for p in error.value.problems)
    assert any(p.startswith("proj_out.weight: got shape") for p in error.value.problems)


def test_schedulers(tmp_path):
    weights.save_scheduler(weights.make_scheduler(PRESET.scheduler, "dpm"), tmp_path / "scheduler")
    assert type(weights.load_scheduler(tmp_path)).__name__ == "CogVideoXDPMScheduler"
    assert type(weights.load_scheduler(tmp_path, "ddim")).__name__ == "CogVideoXDDIMScheduler"
    assert weights.load_scheduler(tmp_path).config == PRESET.scheduler
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("CogVideoXDPMScheduler", "EulerDiscreteScheduler"))
    with pytest.raises(UserError, match="got _class_name 'EulerDiscreteScheduler'"):
        weights.load_scheduler(tmp_path)
    with pytest.raises(UserError, match="sampler: got 'euler', need one of ddim, dpm"):
        weights.make_scheduler(PRESET.scheduler, "euler")


def test_a_folder_without_scheduler_gets_the_published_one():
    assert weights.default_scheduler_config(PRESETS["2b"].transformer) == PRESETS["2b"].scheduler
    assert weights.default_scheduler_config(PRESETS["1.5-5b"].transformer) == PRESETS["1.5-5b"].scheduler


def test_unknown_dtype():
    with pytest.raises(UserError, match="dtype: got 'int8', need one of fp32, bf16, fp16"):
        weights.ms_type("int8")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_parameters_kept_in_bf16_run_on_the_cpu(tmp_path, part):
    """Stored in half the memory, computed in fp32: the same numbers as fp32 parameters rounded to bf16."""
    rng = np.random.default_rng(0)
    inputs: dict = {
        "transformer": (rng.standard_normal((1, 2, 16, 4, 4)), rng.standard_normal((1, 3, 64)), np.array([7])),
        "vae": (rng.standard_normal((1, 3, 1, 16, 16)),),
        "text_encoder": (np.array([[3, 5, 1]], np.int32),),
    }
    models = {
        "transformer": (CogVideoXTransformer3DModel(CONFIG), weights.save_transformer, weights.load_transformer),
        "vae": (AutoencoderKLCogVideoX(PRESET.vae), weights.save_vae, weights.load_vae),
        "text_encoder": (T5EncoderModel(PRESET.text), weights.save_text_encoder, weights.load_text_encoder),
    }
    model, save, load = models[part]
    save(model.initialize(1), tmp_path, "bf16")
    values = [ms.Tensor(v.astype(np.float32) if v.dtype == np.float64 else v) for v in inputs[part]]
    outputs = []
    for dtype in ("fp32", "bf16"):
        loaded = load(tmp_path, dtype)
        assert {str(p.dtype) for p in loaded.get_parameters()} == {{"fp32": "Float32", "bf16": "BFloat16"}[dtype]}
        result = loaded.encode(*values)[0] if part == "vae" else loaded(*values)
        outputs.append(result.astype(ms.float32).asnumpy())
    assert np.array_equal(*outputs)
