"""Outputs of the reference, stored by tests/parity/make_golden.py, checked without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from core import ops
from core.configs import SchedulerConfig, T5Config, TransformerConfig, VAEConfig
from core.schedulers.dpm import CogVideoXDPMScheduler
from core.text.t5 import T5EncoderModel
from core.transformer.model import CogVideoXTransformer3DModel
from core.vae.model import AutoencoderKLCogVideoX
from core.vae.tiling import TilingConfig
from core.weights import make_scheduler
from tests.tolerances import MODULE, relative_error

FOLDER = Path(__file__).parents[1] / "golden"


def _files(group: str) -> list[str]:
    found = sorted(path.name for path in FOLDER.glob(f"{group}-*.npz"))
    assert found, f"no stored arrays of {group}; run python -m tests.parity.make_golden"
    return found


def _load(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(FOLDER / name) as stored:
        arrays = dict(stored)
    return json.loads(str(arrays.pop("config"))), arrays


def _filled(model, arrays):
    given = {n.removeprefix("weight."): v for n, v in arrays.items() if n.startswith("weight.")}
    for name in model.table:
        model.assign(name, given[name])
    return model


@pytest.fixture(params=["pynative", "graph"])
def mode(request):
    ops.configure(mode=request.param)


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("name", _files("transformer"))
def test_transformer(name):
    config, arrays = _load(name)
    model = _filled(CogVideoXTransformer3DModel(TransformerConfig.from_dict(config, name)), arrays)
    inputs = [ms.Tensor(arrays[n]) for n in ("hidden_states", "encoder_hidden_states", "timestep")]
    assert relative_error(model(*inputs).asnumpy(), arrays["output"]) <= MODULE


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("name", _files("vae"))
def test_vae(name):
    config, arrays = _load(name)
    model = _filled(AutoencoderKLCogVideoX(VAEConfig.from_dict(config, name)), arrays)
    tiling = None
    if "tiling" in arrays:
        height, width, overlap_height, overlap_width = arrays["tiling"].tolist()
        tiling = TilingConfig(
            tile_height=int(height), tile_width=int(width), overlap_height=overlap_height, overlap_width=overlap_width
        )
    if "output" in arrays:
        output = model.decode(ms.Tensor(arrays["input"]), tiling).asnumpy()
        assert relative_error(output, arrays["output"]) <= MODULE
    else:
        mean, std = model.encode(ms.Tensor(arrays["input"]), tiling)
        assert relative_error(mean.asnumpy(), arrays["output.mean"]) <= MODULE
        assert relative_error(std.asnumpy(), arrays["output.std"]) <= MODULE


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("name", _files("text"))
def test_text_encoder(name):
    config, arrays = _load(name)
    model = _filled(T5EncoderModel(T5Config.from_dict(config, name)), arrays)
    mask = ms.Tensor(arrays["attention_mask"]) if "attention_mask" in arrays else None
    output = model(ms.Tensor(arrays["input_ids"]), mask).asnumpy()
    assert relative_error(output, arrays["output.last_hidden_state"]) <= MODULE


@pytest.mark.parametrize("name", _files("schedulers"))
def test_scheduler(name):
    config, arrays = _load(name)
    sampler = str(arrays["case"]).split(" ", 1)[0].lower()
    scheduler: Any = make_scheduler(SchedulerConfig.from_dict(config, name), sampler)
    scheduler.set_timesteps(int(arrays["n"]))
    assert np.array_equal(scheduler.timesteps, arrays["output.timesteps"])
    sample, estimate, back = arrays["start"], None, None
    for i, t in enumerate(scheduler.timesteps.tolist()):
        output = arrays["model_outputs"][i]
        if isinstance(scheduler, CogVideoXDPMScheduler):
            sample, estimate = scheduler.step(output, estimate, t, back, sample, noise=arrays["noises"][i])
        else:
            sample, estimate = scheduler.step(output, t, sample)
        back = t
        assert relative_error(sample, arrays["output.prev_samples"][i]) <= MODULE
        assert relative_error(estimate, arrays["output.pred_original_samples"][i]) <= MODULE
