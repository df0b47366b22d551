"""LoRA: equivalences, training, stored results of PEFT, errors. Live parity is in tests/parity/test_lora.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from core import ops, weights
from core.configs import TransformerConfig
from core.errors import UserError
from core.lora import attach, attached
from core.lora_spec import DEFAULT_TARGETS, LoRAConfig, ModuleRank, adapter_table, find_layers, layers
from core.model import Handed
from core.optim.adamw import AdamW
from core.presets import PRESETS
from core.train.step import Batch, TrainStep
from core.transformer.model import CogVideoXTransformer3DModel
from core.transformer.parameters import parameter_table
from tests.core.lora_helpers import (
    CONFIG,
    LORA,
    adapted_model,
    gradients_of,
    graphs_compiled_by,
    output_of,
    plain_model,
)
from tests.tolerances import GRADIENT, MODULE, OPERATOR_GRADIENT, relative_error

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("lora-*.npz"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_output_and_gradients_of_peft(path):
    ops.configure(mode="graph")
    with np.load(path) as stored:
        arrays = dict(stored)
    model = CogVideoXTransformer3DModel(TransformerConfig.from_dict(json.loads(str(arrays["config"])), path.name))
    for name in model.table:
        model.assign(name, arrays[f"weight.{name}"])
    targets = tuple(json.loads(str(arrays["targets"])))
    lora = attach(model, LoRAConfig(rank=int(arrays["rank"]), alpha=float(arrays["alpha"]), targets=targets), 0)
    lora.assign({name: arrays[f"lora.{name}"] for name in lora.arrays()})
    assert len(lora.parameters) == len([n for n in arrays if n.startswith("lora.")])
    values = [ms.Tensor(arrays[n]) for n in ("hidden_states", "encoder_hidden_states", "timestep")]
    assert relative_error(model(*values).asnumpy(), arrays["output"]) <= MODULE
    for name, gradient in gradients_of(model, lora, values, ms.Tensor(arrays["target"])).items():
        assert relative_error(gradient, arrays[f"gradient.{name}"]) <= GRADIENT, name


def test_there_are_stored_results():
    assert len(GOLDEN) == 2


def test_attaching_changes_no_output_and_starts_as_peft():
    model = plain_model()
    before = output_of(model)
    lora = attach(model, LORA, seed=1)
    assert np.array_equal(output_of(model), before)
    arrays = lora.arrays()
    assert all(not v.any() for n, v in arrays.items() if ".lora_B." in n)
    down = arrays["transformer_blocks.1.ff.net.2.lora_A.weight"]
    bound = down.shape[1] ** -0.5  # kaiming_uniform with a = sqrt(5)
    assert 0.9 * bound < np.abs(down).max() <= bound
    again, other = (attach(plain_model(), replace(LORA, targets=("ff.net.2",)), seed=s).arrays() for s in (1, 2))
    assert np.array_equal(again["transformer_blocks.1.ff.net.2.lora_A.weight"], down)
    assert not np.array_equal(other["transformer_blocks.1.ff.net.2.lora_A.weight"], down)


def test_the_term_by_hand():
    weight, down, up = (
        np.random.default_rng(i).standard_normal(s, np.float32) for i, s in enumerate([(4, 5), (2, 5), (4, 2)])
    )
    x = np.random.default_rng(9).standard_normal((3, 5), np.float32)
    names = {"l.weight": weight, "l.lora_A.weight": down, "l.lora_B.weight": up}
    ours = ops.dense({n: ms.Tensor(v) for n, v in names.items()}, "l", ms.Tensor(x)).asnumpy()
    assert np.allclose(ours, x @ weight.T + x @ down.T @ up.T, atol=1e-5)


def test_modes_and_recomputation_agree():
    outputs, gradients = [], []
    for mode, recompute in (("pynative", False), ("pynative", True), ("graph", False), ("graph", True)):
        ops.configure(mode=mode)  # type: ignore[arg-type]
        model, lora = adapted_model()
        model.recompute(recompute)
        outputs.append(output_of(model))
        gradients.append(gradients_of(model, lora))
    for output, gradient in zip(outputs[1:], gradients[1:], strict=True):
        assert relative_error(output, outputs[0]) <= 1e-6
        for name, value in gradient.items():
            assert relative_error(value, gradients[0][name]) <= OPERATOR_GRADIENT, name


@pytest.mark.parametrize(("mode", "wrap"), [("pynative", "recomputed"), ("graph", "recomputed"), ("graph", "compiled")])
def test_gradients_of_what_is_frozen_are_not_computed(mode, wrap):
    """Asked for all the same, they are zero."""
    ops.configure(mode=mode)
    wrap = getattr(ops, wrap)
    held = {n: ms.Parameter(ms.Tensor([v], ms.float32), name=n) for n, v in (("a", 2.0), ("b", 3.0))}
    function, x = wrap(_product), ms.Tensor([5.0], ms.float32)

    def gradients(frozen):
        def loss(x):
            return function(Handed({n: q.view(q.shape) for n, q in held.items()}, frozen), x).sum()

        return [float(g) for g in ops.value_and_gradients(loss, list(held.values()))(x)[1]]

    assert gradients(frozenset()) == [15.0, 10.0]
    assert gradients(frozenset({"b"})) == [15.0, 0.0]


def _product(p, x):
    return p["a"] * p["b"] * x


def _batch(sample):
    rng = np.random.default_rng(sample)
    latents = rng.standard_normal((1, 2, CONFIG.out_channels, 4, 4), np.float32)
    text = rng.standard_normal((1, 3, CONFIG.text_embed_dim), np.float32)
    return Batch(latents=latents, text=text, samples=[sample], files=[f"clip{sample}"])


@pytest.mark.parametrize(("dtype", "recompute"), [(ms.float32, False), (ms.bfloat16, True)])
def test_training_changes_the_lora_and_no_bit_of_the_base(dtype, recompute):
    ops.configure(mode="graph")
    model = plain_model(dtype)
    lora = attach(model, LORA, seed=1)
    model.recompute(recompute)
    assert model.trainable_params() == lora.parameters
    assert {q.dtype for q in lora.parameters} == {ms.float32}
    base, start = weights.parameter_digest(model), lora.arrays()
    optimizer = AdamW(lora.parameters, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    scheduler = weights.make_scheduler(PRESETS["tiny-1.5"].scheduler, "ddim")
    step = TrainStep(model, scheduler, optimizer, max_grad_norm=1.0, seed=1)
    losses = [step(index, [_batch(0), _batch(1)], 1e-2).loss for index in range(3)]
    assert np.all(np.isfinite(losses))
    assert weights.parameter_digest(model) == base
    for name, value in lora.arrays().items():
        assert not np.array_equal(value, start[name]), name


def test_one_graph_for_all_blocks_and_every_scale():
    ops.configure(mode="graph")
    one, three = (replace(CONFIG, num_layers=n) for n in (1, 3))
    few = graphs_compiled_by(lambda: gradients_of(*adapted_model(sizes=one)))
    assert few > 0
    model, lora = adapted_model(sizes=three)
    assert graphs_compiled_by(lambda: gradients_of(model, lora)) == few

    def other_factors():
        lora.scale = 0.3
        gradients_of(model, lora)

    assert graphs_compiled_by(other_factors) == 0


def test_scale():
    model, lora = adapted_model()
    full, base = output_of(model), output_of(plain_model())
    lora.scale = 0.0
    assert np.array_equal(output_of(model), base)
    lora.scale = 1.0
    assert np.array_equal(output_of(model), full)
    assert relative_error(full, base) > 0.01


def test_detaching_leaves_the_model_as_it_was():
    model, before = plain_model(), output_of(plain_model())
    frozen = model.parameters_dict()["proj_out.bias"]
    frozen.requires_grad = False
    trained = [q.name for q in model.trainable_params()]
    lora = attach(model, LORA, seed=1)
    assert attached(model) is not None
    lora.detach()
    assert attached(model) is None
    assert [q.name for q in model.trainable_params()] == trained
    assert list(model.parameters_dict()) == list(model.table)
    assert np.array_equal(output_of(model), before)
    attach(model, LORA, seed=2)


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_merged_equals_unmerged(scale, tmp_path):
    model, lora = adapted_model()
    lora.scale = scale
    unmerged = output_of(model)
    assert lora.merge() is model
    assert attached(model) is None
    assert relative_error(output_of(model), unmerged) <= 1e-6
    weights.save_transformer(model, tmp_path)
    loaded = weights.load_transformer(tmp_path)
    assert np.array_equal(output_of(loaded), output_of(model))
    assert relative_error(output_of(plain_model()), unmerged) > 0.01


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 0}, "lora.rank: got 0, need at least 1"),
        ({"alpha": 0.0}, "lora.alpha: got 0.0, need a positive number"),
        ({"alpha": float("nan")}, "lora.alpha: got nan"),
        ({"targets": ()}, "lora.targets: got none"),
        (
            {"targets": ("to_q", "o_q", "ff.*")},
            r"'o_q', 'ff\.\*', which matches no layer.*transformer_blocks\.\*\.attn1",
        ),
        ({"targets": ("norm_q",)}, "'norm_q', which matches no layer"),
    ],
)
def test_configs_that_cannot_be(change, words):
    with pytest.raises(UserError, match=words):
        attach(plain_model(), replace(LORA, **change), seed=0)


def test_attaching_twice_and_names_that_are_taken():
    model = plain_model()
    attach(model, LORA, seed=0)
    with pytest.raises(UserError, match="a LoRA is attached to this model already"):
        attach(model, LORA, seed=0)
    model = plain_model()
    name = "transformer_blocks.0.attn1.to_q.lora_A.weight"
    model.add(ms.Parameter(ms.Tensor([1.0]), name=name))
    with pytest.raises(UserError, match=f"parameters of the LoRA's names: {name}"):
        attach(model, LORA, seed=0)


def test_targets_by_name_and_pattern():
    table = parameter_table(CONFIG)
    assert find_layers(table, ("attn1.to_q", "proj_out")) == [
        "transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_q", "proj_out"
    ]  # fmt: skip
    assert find_layers(table, ("transformer_blocks.1.ff.*",)) == [
        "transformer_blocks.1.ff.net.0.proj", "transformer_blocks.1.ff.net.2"
    ]  # fmt: skip
    assert find_layers(table, ("proj",)) == [
        "patch_embed.proj", "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.1.ff.net.0.proj"
    ]  # fmt: skip
    assert find_layers(table, ("*",)) == list(layers(table))


def test_size_at_the_published_width():
    table = parameter_table(PRESETS["1.5-5b"].transformer)
    modules = dict.fromkeys(find_layers(table, DEFAULT_TARGETS), ModuleRank(rank=128, alpha=64))
    added = adapter_table(table, modules)
    assert len(added) == 42 * 4 * 2
    assert sum(spec.size for spec in added.values()) == 42 * 4 * 2 * 128 * 3072
