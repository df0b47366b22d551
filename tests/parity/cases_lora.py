"""LoRA on random-weight transformers computed by PEFT in diffusers; the stored arrays and the live tests share them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig

from core.lora_spec import DEFAULT_TARGETS, find_layers
from core.transformer.parameters import parameter_table
from tests.parity.cases_transformer import config_of, inputs, reference_model, reference_output


@dataclass(frozen=True)
class Case:
    """A transformer case of ``cases_transformer``, our targets, PEFT's settings."""

    transformer: str
    rank: int
    alpha: float
    targets: tuple[str, ...] = DEFAULT_TARGETS
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    rslora: bool = False


CASES = {
    "attention": Case("1.5", 4, 8.0),
    "every layer": Case("1.5", 3, 2.0, ("*",)),
    "1.0 with its convolution": Case("1.0-sincos", 2, 1.0, (*DEFAULT_TARGETS, "patch_embed.proj", "norm1.linear")),
    "ranks and alphas that differ": Case(
        "1.5", 4, 8.0, (*DEFAULT_TARGETS, "net.2"), {"to_q": 6, "transformer_blocks.1.ff.net.2": 2}, {"to_v": 3.0}
    ),
    "scaled by the root of the rank": Case("1.5", 4, 8.0, rslora=True),
}


def lora_config(case: Case) -> LoraConfig:
    """PEFT's config of a case; patterns of ours are spelled out as names."""
    names = list(case.targets)
    if any("*" in name for name in names):
        names = find_layers(parameter_table(config_of(case.transformer)), case.targets)
    settings: Any = {"lora_alpha": case.alpha}  # PEFT's annotation says int, its arithmetic takes any number
    return LoraConfig(
        r=case.rank, **settings, target_modules=names, rank_pattern=case.rank_pattern,
        alpha_pattern=case.alpha_pattern, use_rslora=case.rslora,
    )  # fmt: skip


def with_lora(model: Any, case: Case, seed: int = 1) -> Any:
    """Adds the adapter with A as PEFT draws it and a random B (zeros would hide A's gradient); returns the model."""
    torch.manual_seed(seed)
    model.add_adapter(lora_config(case), adapter_name="default")
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    return model


def lora_arrays(model: Any, *, gradients: bool = False) -> dict[str, np.ndarray]:
    """LoRA parameters (or their gradients) by our names."""
    found = {n.replace(".default.", "."): p for n, p in model.named_parameters() if ".lora_" in n}
    return {n: (p.grad if gradients else p.detach()).numpy().copy() for n, p in found.items()}


def base_arrays(model: Any) -> dict[str, np.ndarray]:
    """The frozen parameters by the published names."""
    state = {n.replace(".base_layer.", "."): v for n, v in model.state_dict().items()}
    return {n: v.numpy() for n, v in state.items() if ".lora_" not in n}


def run(model: Any, values: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Output, gradients of ``mean((output - target)^2)`` with respect to the LoRA parameters, and the target."""
    output = reference_output(model, values)
    target = np.random.default_rng(7).standard_normal(output.shape, np.float32)
    ((output - torch.from_numpy(target)) ** 2).mean().backward()
    return output.detach().numpy(), lora_arrays(model, gradients=True), target


def cases() -> dict[str, dict[str, np.ndarray]]:
    """Arrays for the stored test: config, inputs, ``weight.``, ``lora.``, ``gradient.<name>``, target, output."""
    stored = {}
    for name in ("attention", "every layer"):
        case = CASES[name]
        config = replace(config_of(case.transformer), num_layers=1, time_embed_dim=16, num_attention_heads=2)
        values = inputs(case.transformer)
        model = reference_model(config)
        model.add_adapter(lora_config(replace(case, targets=_present(case, config))), adapter_name="default")
        torch.manual_seed(1)
        for key, parameter in model.named_parameters():
            if ".lora_" in key:
                parameter.data = 0.1 * torch.randn_like(parameter)
        output, gradients, target = run(model, values)
        arrays = {f"weight.{n}": v for n, v in base_arrays(model).items()}
        arrays |= {f"lora.{n}": v for n, v in lora_arrays(model).items()}
        arrays |= {f"gradient.{n}": v for n, v in gradients.items()}
        head = {"config": np.array(json.dumps(config.to_dict())), "targets": np.array(json.dumps(case.targets))}
        numbers = {"rank": np.array(case.rank), "alpha": np.array(case.alpha)}
        stored[name] = {**head, **numbers, **values, **arrays, "target": target, "output": output}
    return stored


def _present(case: Case, config: Any) -> tuple[str, ...]:
    return tuple(find_layers(parameter_table(config), case.targets))
