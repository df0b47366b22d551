"""Our T5 encoder against transformers' with the same weights."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from transformers import T5Config as ReferenceConfig
from transformers import T5EncoderModel as ReferenceEncoder
from transformers.models.t5.modeling_t5 import T5Attention

from core import ops
from core.configs import T5Config
from core.presets import PRESETS
from core.text.parameters import ALIASES, parameter_table
from core.text.t5 import T5EncoderModel, position_buckets
from tests.parity.cases_text import all_cases
from tests.tolerances import MODULE, relative_error

CASES = all_cases()


@pytest.fixture(params=["pynative", "graph"])
def mode(request):
    ops.configure(mode=request.param)
    yield request.param
    ops.configure()


def _load(case) -> T5EncoderModel:
    model = T5EncoderModel(T5Config(**case["config"]))
    assert set(model.table) | set(ALIASES) == set(case["weights"])
    for alias, name in ALIASES.items():
        np.testing.assert_array_equal(case["weights"][alias], case["weights"][name])
    for name in model.table:
        model.assign(name, case["weights"][name])
    return model


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_outputs(case, mode):
    inputs = {name: ms.Tensor(value) for name, value in case["inputs"].items()}
    ours = _load(case).construct(*inputs.values()).asnumpy()
    theirs = case["outputs"]["last_hidden_state"]
    distance = relative_error(ours, theirs)
    print(f"\nparity {case['name']}, {mode}: {distance:.2e}")
    assert distance <= MODULE


def test_a_swapped_weight_is_noticed():
    case = CASES[1]
    model = _load(case)
    name = "encoder.block.1.layer.0.SelfAttention."
    model.assign(name + "q.weight", case["weights"][name + "v.weight"])
    ours, theirs = (
        model.construct(ms.Tensor(case["inputs"]["input_ids"])).asnumpy(),
        case["outputs"]["last_hidden_state"],
    )
    assert relative_error(ours, theirs) > 100 * MODULE


@pytest.mark.parametrize(
    ("length", "buckets", "distance"), [(600, 32, 128), (300, 16, 64), (300, 32, 20), (700, 64, 256), (100, 8, 128)]
)
def test_position_buckets_are_equal(length, buckets, distance):
    places = torch.arange(length)
    theirs = T5Attention._relative_position_bucket(
        places[None] - places[:, None], num_buckets=buckets, max_distance=distance
    )
    np.testing.assert_array_equal(position_buckets(length, buckets, distance), theirs.numpy())


@pytest.mark.parametrize("preset", ["5b", "tiny-1.5"])
def test_names_and_shapes_at_full_size(preset):
    config = PRESETS[preset].text
    with torch.device("meta"):
        theirs = ReferenceEncoder(ReferenceConfig(**config.to_dict()))
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items() if name not in ALIASES}
    assert {name: spec.shape for name, spec in parameter_table(config).items()} == expected
