"""Both samplers, the noise tables and dynamic guidance against diffusers over all steps."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler as ReferenceDDIM

from core.configs import SchedulerConfig
from core.errors import UserError
from core.presets import PRESETS
from core.schedulers.ddim import CogVideoXDDIMScheduler
from core.schedulers.dpm import CogVideoXDPMScheduler
from core.schedulers.guidance import dynamic_guidance_scale
from tests.parity.cases_schedulers import PREDICTIONS, STEPS, all_cases, configs, label, path
from tests.tolerances import OPERATOR

OURS = {"DDIM": CogVideoXDDIMScheduler, "DPM": CogVideoXDPMScheduler}
# Same float64 coefficients, rounded to fp32 once, in the same order of operations. DDIM needs square roots only, which
# every machine rounds alike: equal to the last bit. DPM needs exp and log, which libraries round differently (0 here).
NUMPY_TOLERANCE = {"DDIM": 0.0, "DPM": OPERATOR}
# diffusers computes the linear and cosine tables in fp32 from the first beta on; ours are float64.
FLOAT32_TABLE_TOLERANCE = 2e-5


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours.astype(np.float64) - theirs) / max(np.linalg.norm(theirs), 1e-30))


def _follow(case: dict, sampler: str, make=lambda array: array) -> tuple[np.ndarray, np.ndarray]:
    config = SchedulerConfig(**case["config"])
    scheduler = OURS[sampler](config)
    scheduler.set_timesteps(int(case["inputs"]["n"]))
    np.testing.assert_array_equal(scheduler.timesteps, case["outputs"]["timesteps"])
    sample, old, back, previous, clean = make(case["inputs"]["start"]), None, None, [], []
    for i, t in enumerate(scheduler.timesteps):
        output = make(case["inputs"]["model_outputs"][i])
        if sampler == "DPM":
            sample, old = scheduler.step(output, old, t, back, sample, noise=make(case["inputs"]["noises"][i]))
        else:
            sample, old = scheduler.step(output, t, sample)
        back = t
        previous.append(np.array(sample))
        clean.append(np.array(old))
    return np.stack(previous), np.stack(clean)


def _check(case: dict, sampler: str, tolerance: float, make=lambda array: array) -> float:
    previous, clean = _follow(case, sampler, make)
    assert np.isfinite(previous).all(), case["name"]
    worst = 0.0
    for i in range(len(previous)):
        found = max(
            _distance(previous[i], case["outputs"]["prev_samples"][i]),
            _distance(clean[i], case["outputs"]["pred_original_samples"][i]),
        )
        assert found <= tolerance, (case["name"], i, found)
        worst = max(worst, found)
    return worst


@pytest.mark.parametrize("sampler", OURS)
@pytest.mark.parametrize("n", STEPS)
def test_every_step_of_every_config(sampler, n):
    done, worst = 0, 0.0
    for config in configs():
        blind = config.prediction_type == "epsilon" and config.rescale_betas_zero_snr
        scheduler = OURS[sampler](config)
        scheduler.set_timesteps(n)
        if blind and scheduler.timesteps[0] == 999:
            # Division by a zero signal: the reference gives infinities and goes on, ours says so.
            assert not np.isfinite(path(sampler, config, n)["outputs"]["prev_samples"]).all()
            with pytest.raises(UserError, match="zero SNR"):
                scheduler.pred_original(np.ones(1), 999, np.ones(1))
            continue
        worst = max(worst, _check(path(sampler, config, n), sampler, NUMPY_TOLERANCE[sampler]))
        done += 1
    print(f"\nparity {sampler} n {n}, {done} configs: {worst:.1e}")
    assert done >= 30


@pytest.mark.parametrize("sampler", OURS)
@pytest.mark.parametrize(("kind", "n"), [("trailing", 1000), ("linspace", 999), ("leading", 600), ("trailing", 600)])
def test_many_steps(sampler, kind, n):
    worst = _check(
        path(sampler, replace(PRESETS["5b"].scheduler, timestep_spacing=kind), n), sampler, NUMPY_TOLERANCE[sampler]
    )
    print(f"\nparity {sampler} {kind} n {n}: {worst:.1e}")


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case["name"])
def test_mindspore_tensors(case):
    worst = _check(case, case["name"].split()[0], OPERATOR, ms.Tensor)
    print(f"\nparity MindSpore {case['name']}: {worst:.1e}")


@pytest.mark.parametrize("sampler", OURS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_schedules_that_the_reference_computes_in_single_precision(sampler, schedule, prediction):
    config = replace(
        PRESETS["5b"].scheduler, beta_schedule=schedule, prediction_type=prediction, rescale_betas_zero_snr=False
    )
    # With epsilon the cosine's first clean estimate divides by a signal of 5e-5, so only later steps can be compared.
    if schedule == "squaredcos_cap_v2" and prediction == "epsilon":
        config = replace(config, timestep_spacing="leading")
    worst = _check(path(sampler, config, 10), sampler, FLOAT32_TABLE_TOLERANCE)
    print(f"\nparity {label(sampler, config, 10)} {schedule}: {worst:.1e}")


@pytest.mark.parametrize("alpha_one", [True, False])
def test_final_level_and_trained_betas(alpha_one):
    betas = tuple(np.linspace(0.01, 0.2, 20).astype(np.float32).tolist())
    config = replace(
        PRESETS["5b"].scheduler, num_train_timesteps=20, trained_betas=betas, set_alpha_to_one=alpha_one,
        rescale_betas_zero_snr=False,
    )  # fmt: skip
    for sampler in OURS:
        for n in (1, 3, 5, 20):
            _check(path(sampler, config, n), sampler, FLOAT32_TABLE_TOLERANCE)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("zero", [True, False])
def test_tables_noise_and_velocity(shift, zero):
    config = replace(PRESETS["5b"].scheduler, snr_shift_scale=shift, rescale_betas_zero_snr=zero)
    ours, theirs = CogVideoXDDIMScheduler(config), ReferenceDDIM(**config.to_dict())
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=1e-9, atol=1e-15)
    rng = np.random.default_rng(0)
    x, e = (rng.standard_normal((7, 3, 5)).astype(np.float32) for _ in range(2))
    t = np.array([0, 1, 13, 500, 750, 998, 999])
    for name in ("add_noise", "get_velocity"):
        reference = getattr(theirs, name)(torch.tensor(x), torch.tensor(e), torch.tensor(t)).numpy()
        distance = _distance(getattr(ours, name)(x, e, t), reference)
        print(f"\nparity {name} shift {shift:g} zero {zero}: {distance:.1e}")
        assert distance <= 1e-5


def test_trailing_differs_from_the_reference_only_where_that_has_a_step_at_minus_one():
    reference = ReferenceDDIM(**PRESETS["5b"].scheduler.to_dict())
    ours = CogVideoXDDIMScheduler(PRESETS["5b"].scheduler)
    longer = 0
    for n in range(1, 1001):
        reference.set_timesteps(n)
        ours.set_timesteps(n)
        theirs = reference.timesteps.numpy()
        np.testing.assert_array_equal(ours.timesteps, theirs[:n])
        if len(theirs) != n:
            assert len(theirs) == n + 1
            assert theirs[-1] == -1
            longer += 1
    assert longer == 62


def test_a_wrong_coefficient_is_noticed(monkeypatch):
    case = path("DDIM", PRESETS["5b"].scheduler, 4)
    monkeypatch.setattr(CogVideoXDDIMScheduler, "previous_timestep", lambda self, t: t - 249)
    with pytest.raises(AssertionError):
        _check(case, "DDIM", OPERATOR)


@pytest.mark.parametrize("n", [4, 7, 30, 50])
def test_dynamic_guidance(n):
    scheduler = CogVideoXDDIMScheduler(PRESETS["5b"].scheduler)
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps:
        reference = _pipeline_guidance(6.0, torch.tensor(t), n)
        assert dynamic_guidance_scale(6.0, t, n) == pytest.approx(reference, abs=1e-12)


def _pipeline_guidance(scale: float, t: torch.Tensor, n: int) -> float:
    """Evaluates the expression in the text of the installed pipeline, so that a change there is noticed."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(CogVideoXPipeline.__call__)))
    found = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and "_guidance_scale" in ast.unparse(node.targets[0])
        and "cos" in ast.unparse(node.value)
    ]
    assert len(found) == 1
    names = {"math": math, "guidance_scale": scale, "num_inference_steps": n, "t": t}
    return eval(compile(ast.Expression(found[0]), "pipeline", "eval"), names)
