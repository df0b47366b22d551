"""LoRA against PEFT: outputs, gradients, files of CogVideoXPipeline both ways."""

from __future__ import annotations

import json
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel as Reference
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from peft import get_peft_model
from peft.utils import get_peft_model_state_dict

from core import ops, weights
from core.lora import attach, load_lora, save_lora
from core.lora_spec import LoRAConfig
from tests.parity.cases_lora import CASES, Case, lora_arrays, lora_config, run, with_lora
from tests.parity.cases_transformer import config_of, inputs, reference_model, reference_output
from tests.parity.test_pipeline_parity import _our_folder
from tests.tolerances import GRADIENT, MODULE, relative_error


def _tensors(values):
    return [ms.Tensor(value) for value in values.values()]


def _same_base(case: Case, folder) -> tuple[Any, Any]:
    """The reference and ours from one folder, without LoRA."""
    reference_model(config_of(case.transformer)).save_pretrained(folder)
    return Reference.from_pretrained(folder).eval(), weights.load_transformer(folder)


@pytest.mark.parametrize(("mode", "recompute"), [("pynative", False), ("graph", False), ("graph", True)])
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients(name, mode, recompute, tmp_path):
    ops.configure(mode=mode)
    case, values = CASES[name], inputs(CASES[name].transformer)
    reference, ours = _same_base(case, tmp_path / "base")
    with_lora(reference, case)
    reference.save_lora_adapter(tmp_path / "lora")
    expected, gradients, target = run(reference, values)
    lora = load_lora(ours, tmp_path / "lora")
    ours.recompute(recompute)
    error = relative_error(ours(*_tensors(values)).asnumpy(), expected)

    def loss(*tensors):
        difference = ours(*tensors) - ms.Tensor(target)
        return (difference * difference).mean()

    found = ops.value_and_gradients(loss, lora.parameters)(*_tensors(values))[1]
    assert {q.name for q in lora.parameters} == set(gradients)
    worst = max(relative_error(g.asnumpy(), gradients[q.name]) for q, g in zip(lora.parameters, found, strict=True))
    print(f"PARITY lora {name} {mode} recompute={recompute}: output {error:.2e} gradients {worst:.2e}")
    assert error <= MODULE
    assert worst <= GRADIENT


@pytest.mark.parametrize("name", ["attention", "every layer", "1.0 with its convolution"])
def test_attached_as_peft_attaches(name, tmp_path):
    """Same layers, shapes, and range of A; B zeros."""
    case = CASES[name]
    reference, ours = _same_base(case, tmp_path)
    reference.add_adapter(lora_config(case), adapter_name="default")
    expected = lora_arrays(reference)
    lora = attach(ours, LoRAConfig(rank=case.rank, alpha=case.alpha, targets=case.targets), seed=0)
    found = lora.arrays()
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in expected.items()}
    for key, value in found.items():
        bound = 0.0 if ".lora_B." in key else np.prod(value.shape[1:]) ** -0.5
        assert np.abs(value).max() <= bound
        assert np.abs(expected[key]).max() <= bound * (1 + 1e-6)
        if bound:
            assert value.std() == pytest.approx(bound / np.sqrt(3), rel=0.25), key


def _pipeline(folder) -> Any:
    return CogVideoXPipeline.from_pretrained(_our_folder(folder, "tiny-1.5"))


def _pipeline_inputs(config: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "hidden_states": rng.standard_normal((1, 2, config.in_channels, 6, 8), np.float32),
        "encoder_hidden_states": rng.standard_normal((1, 24, config.text_embed_dim), np.float32),
        "timestep": np.array([501], np.int64),
    }


def _reference_output(pipeline, values):
    with torch.no_grad():
        return reference_output(pipeline.transformer.eval(), values).numpy()


FILES = {
    "plain": LoRAConfig(rank=4, alpha=8.0),
    "pattern": LoRAConfig(rank=3, alpha=1.0, targets=("transformer_blocks.*", "proj_out", "patch_embed.*")),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_pipeline_loads_what_we_save(kind, tmp_path):
    pipeline = _pipeline(tmp_path)
    ours = weights.load_transformer(tmp_path)
    lora, rng = attach(ours, FILES[kind], seed=0), np.random.default_rng(0)
    lora.assign({n: (0.1 * rng.standard_normal(v.shape)).astype(np.float32) for n, v in lora.arrays().items()})
    save_lora(lora, tmp_path / "lora")
    values = _pipeline_inputs(ours.config)
    base = _reference_output(pipeline, values)
    pipeline.load_lora_weights(tmp_path / "lora", adapter_name="ours")
    settings = pipeline.transformer.peft_config["ours"]
    assert (settings.r, settings.lora_alpha) == (lora.config.rank, lora.config.alpha)
    expected = _reference_output(pipeline, values)
    assert relative_error(ours(*_tensors(values)).asnumpy(), expected) <= MODULE
    assert relative_error(base, expected) > 0.01
    pipeline.set_adapters(["ours"], [0.5])
    lora.scale = 0.5
    assert relative_error(ours(*_tensors(values)).asnumpy(), _reference_output(pipeline, values)) <= MODULE
    pipeline.set_adapters(["ours"], [1.0])
    pipeline.fuse_lora()
    lora.scale = 1.0
    merged = lora.merge()
    assert relative_error(merged(*_tensors(values)).asnumpy(), _reference_output(pipeline, values)) <= MODULE


def test_layers_of_other_ranks_and_alphas_go_to_the_pipeline(tmp_path):
    """What was loaded from a file with patterns is saved with patterns."""
    case, values = CASES["ranks and alphas that differ"], inputs("1.5")
    reference, ours = _same_base(case, tmp_path / "base")
    with_lora(reference, case)
    reference.save_lora_adapter(tmp_path / "theirs")
    save_lora(load_lora(ours, tmp_path / "theirs"), tmp_path / "ours")
    again = Reference.from_pretrained(tmp_path / "base").eval()
    # As load_lora_weights does; the model's own load_lora_adapter would not read alpha from the file.
    state, settings = CogVideoXPipeline.lora_state_dict(tmp_path / "ours", return_lora_metadata=True)
    CogVideoXPipeline.load_lora_into_transformer(state, again, metadata=settings)
    with torch.no_grad():
        expected, found = (reference_output(model, values).numpy() for model in (reference, again))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("metadata", [True, False])
def test_we_load_what_the_pipeline_saves(metadata, tmp_path):
    pipeline = _pipeline(tmp_path)
    case = Case("1.5", 4, 8.0)
    with_lora(pipeline.transformer, case)
    layers: Any = get_peft_model_state_dict(pipeline.transformer, adapter_name="default")
    settings = pipeline.transformer.peft_config["default"].to_dict() if metadata else None
    CogVideoXPipeline.save_lora_weights(tmp_path / "lora", layers, transformer_lora_adapter_metadata=settings)
    ours = weights.load_transformer(tmp_path)
    lora = load_lora(ours, tmp_path / "lora")
    assert lora.alpha_from == ("metadata" if metadata else "none: equal to the rank")
    # The same file in a fresh pipeline: without metadata, diffusers too takes the rank for alpha.
    fresh = CogVideoXPipeline.from_pretrained(tmp_path)
    fresh.load_lora_weights(tmp_path / "lora")
    values = _pipeline_inputs(ours.config)
    assert relative_error(ours(*_tensors(values)).asnumpy(), _reference_output(fresh, values)) <= MODULE
    assert {q.name for q in lora.parameters} == set(layers)


def test_we_load_what_peft_saves(tmp_path):
    case, values = CASES["attention"], inputs("1.5")
    reference, ours = _same_base(case, tmp_path / "base")
    torch.manual_seed(1)
    model: Any = get_peft_model(reference, lora_config(case))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["lora_alpha"] == case.alpha
    load_lora(ours, tmp_path / "peft")
    with torch.no_grad():
        expected = reference_output(reference, values).numpy()
    assert relative_error(ours(*_tensors(values)).asnumpy(), expected) <= MODULE
