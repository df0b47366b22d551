"""LoRA from outside the model: low-rank terms beside chosen layers, everything else frozen (arXiv 2106.09685).

Adapted layer: ``y = x W^T + b + s (x A^T) B^T`` with ``A [rank, in]``, ``B [out, rank]``, ``s = scale * alpha / rank``.
A and B are parameters of the model named as PEFT names them, kept in fp32 whatever the model's type. ``Model.block``
hands them out with the layer's weight, B multiplied by ``s`` there: the compiled functions see two more tensors and
no number, so one graph serves all blocks, layers of other alpha and a changed scale; gradients pass the product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import mint

from core import draws
from core.errors import UserError
from core.lora_files import read_lora, write_lora
from core.lora_spec import LoRAConfig, ModuleRank, adapter_table, down_name, find_layers, layers, up_name
from core.model import Model
from core.params import ParamSpec

# Layers whose weight the model multiplies itself, not by ops.dense: W + s B A is handed out in place of W.
_FOLDED = ("patch_embed.proj",)


@dataclass(kw_only=True)
class Adapter:
    """What is attached to a model: held by the model, so it must not refer to it."""

    config: LoRAConfig
    modules: dict[str, ModuleRank]
    parameters: dict[str, ms.Parameter]
    trained_before: dict[str, bool]
    alpha_from: str = "config"
    scale: float = 1.0


class LoRA:
    """The LoRA that is attached to ``model``; any number of such handles may exist, the model holds the state."""

    def __init__(self, model: Model):
        assert isinstance(model.adapter, Adapter)
        self.model, self._adapter = model, model.adapter

    @property
    def config(self) -> LoRAConfig:
        """Rank, alpha, targets; for a file whose layers differ, the most frequent ones."""
        return self._adapter.config

    @property
    def modules(self) -> dict[str, ModuleRank]:
        """Adapted layers with rank and alpha, in the model's order."""
        return dict(self._adapter.modules)

    @property
    def parameters(self) -> list[ms.Parameter]:
        """A and B of every adapted layer: what is trained."""
        return list(self._adapter.parameters.values())

    @property
    def alpha_from(self) -> str:
        """Where alpha came from: ``config``, or what ``load_lora`` found."""
        return self._adapter.alpha_from

    @property
    def scale(self) -> float:
        """Factor of all low-rank terms beside ``alpha / rank`` (PEFT's adapter weight); 0 is the frozen model."""
        return self._adapter.scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._adapter.scale = float(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """Float32 copies of ``parameters`` by name."""
        return {name: parameter.asnumpy().copy() for name, parameter in self._adapter.parameters.items()}

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Sets parameters by name."""
        for name, value in values.items():
            _fill(self._adapter.parameters[name], value)

    def detach(self) -> None:
        """Takes the parameters away; the model is as before, its parameters trainable or not as they were."""
        for name in self._adapter.parameters:
            self.model.withdraw(name)
        for module in self._adapter.modules:
            self.model.hand_out.pop(module + ".weight", None)
        for name, parameter in self.model.parameters_dict().items():
            parameter.requires_grad = self._adapter.trained_before[name]
        self.model.adapter = None

    def merge(self) -> Model:
        """Adds ``s B A`` to every adapted weight (in fp32, then rounded to the stored type) and detaches; the model."""
        held = self.model.parameters_dict()
        for module, rank in self._adapter.modules.items():
            weight = held[module + ".weight"].astype(ms.float32).asnumpy()
            down, up = (held[name].asnumpy() for name in (down_name(module), up_name(module)))
            term = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
            factor = np.float32(self.scale * rank.scaling)
            self.model.assign(module + ".weight", weight + factor * term.reshape(weight.shape))
        self.detach()
        return self.model


def attach(transformer: Model, config: LoRAConfig, seed: int) -> LoRA:
    """Adds a LoRA to the model and freezes everything else; the output is unchanged as B starts at zero.

    A is uniform in +-1/sqrt(in) as in PEFT, drawn from (seed, name).

    Raises:
        UserError: a target that matches no layer, a LoRA that is there already, a parameter of a name that it needs.
    """
    rank = ModuleRank(rank=config.rank, alpha=config.alpha)
    modules = dict.fromkeys(find_layers(transformer.table, config.targets), rank)
    return _attach(transformer, config, modules, lambda name, spec: start_array(name, spec, seed))


def attached(transformer: Model) -> LoRA | None:
    """The model's LoRA, None without one."""
    return LoRA(transformer) if transformer.adapter is not None else None


def load_lora(transformer: Model, folder: str | Path, scale: float = 1.0) -> LoRA:
    """Attaches the LoRA in ``folder`` (or a file), written by ``save_lora``, diffusers or PEFT.

    Raises:
        UserError: no safetensors file there; see ``attach``.
        WeightsError: every missing, unexpected, mis-shaped tensor in one error.
    """
    file = read_lora(folder, transformer.table)
    lora = _attach(transformer, file.config, file.modules, lambda name, _: file.arrays[name])
    transformer.adapter.alpha_from = file.alpha_from
    lora.scale = scale
    return lora


def save_lora(lora: LoRA, folder: str | Path) -> Path:
    """Writes ``pytorch_lora_weights.safetensors`` (fp32) for ``CogVideoXPipeline.load_lora_weights``; its path.

    ``scale`` is not part of a LoRA and is not saved.
    """
    return write_lora(folder, lora.config, lora.modules, lora.arrays())


def start_array(name: str, spec: ParamSpec, seed: int) -> np.ndarray:
    """Start value of one LoRA parameter; depends on (seed, name) only."""
    if spec.init == "zeros":
        return np.zeros(spec.shape, np.float32)
    assert spec.fan_in is not None
    bound = 1.0 / np.sqrt(spec.fan_in)
    return draws.generator(seed, f"lora {name}").uniform(-bound, bound, spec.shape).astype(np.float32)


def _attach(
    model: Model,
    config: LoRAConfig,
    modules: dict[str, ModuleRank],
    value: Callable[[str, ParamSpec], np.ndarray],
) -> LoRA:
    if model.adapter is not None:
        raise UserError("a LoRA is attached to this model already; merge() or detach() it first")
    table, held = adapter_table(model.table, modules), model.parameters_dict()
    clash = [name for name in table if name in held]
    if clash:
        raise UserError(f"the model has parameters of the LoRA's names: {', '.join(clash[:5])}; load the plain model")
    parameters = {}
    for name, spec in table.items():
        tensor = ms.Tensor(np.ascontiguousarray(value(name, spec), np.float32))
        parameters[name] = ms.Parameter(tensor, name=name)
    before = {name: parameter.requires_grad for name, parameter in held.items()}
    for parameter in held.values():
        parameter.requires_grad = False
    model.adapter = Adapter(config=config, modules=modules, parameters=parameters, trained_before=before)
    for module in modules:
        _give(model, module)
    return LoRA(model)


def _give(model: Model, module: str) -> None:
    """Makes ``Model.block`` hand out the layer's A and B, or the folded weight."""
    adapter: Adapter = model.adapter
    rank = adapter.modules[module]
    down, up = adapter.parameters[down_name(module)], adapter.parameters[up_name(module)]
    fetch = model.fetch
    folded, shape = module in _FOLDED, layers(model.table)[module]

    def scaled(up):
        factor = adapter.scale * rank.scaling
        return up if factor == 1.0 else up * factor

    def fold(weight):
        own_up, own_down = fetch([up_name(module), down_name(module)])
        term = mint.matmul(scaled(own_up).reshape(shape[0], -1), own_down.reshape(rank.rank, -1))
        return weight.astype(ms.float32) + term.reshape(shape)

    model.add(down, handed_out=not folded)
    model.add(up, handed_out=not folded)
    if folded:
        model.hand_out[module + ".weight"] = fold
    else:
        model.hand_out[up_name(module)] = scaled


def _fill(parameter: ms.Parameter, value: np.ndarray) -> None:
    assert tuple(parameter.shape) == tuple(value.shape), (parameter.name, parameter.shape, value.shape)
    parameter.set_data(ms.Tensor(np.ascontiguousarray(value, np.float32)))
