"""The reference's side of a pair: diffusers, transformers, PEFT and torch's optimizers, as their own scripts use them.

Reads the weights that our side wrote. Imports torch and never MindSpore.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from safetensors.torch import load_file
from transformers import T5EncoderModel

from bench import paired_inputs
from bench.environment import package_version
from core.lora_spec import find_layers
from core.transformer.parameters import parameter_table

Call = Callable[[int], Any]
PACKAGES = ("torch", "diffusers", "transformers", "peft", "came-pytorch")


def prepare(recipe: Any, folder: Path) -> tuple[Call, dict[str, Any]]:
    """The call ``index -> output`` (a tensor, or the loss of a training step) and facts for the record."""
    call = {
        "transformer": _transformer, "train": _train, "vae-encode": _vae_encode, "vae-decode": _vae_decode,
        "text-encode": _text, "generate": _generate,
    }[recipe.case](recipe, folder)  # fmt: skip
    packages = {name: package_version(name) for name in PACKAGES}
    return call, {"packages": packages, "torch_threads": torch.get_num_threads()}


def array(result: Any) -> np.ndarray:
    """A call's output as an array."""
    return np.asarray(result.detach().numpy() if isinstance(result, torch.Tensor) else result, np.float32)


def _tensors(recipe: Any) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in paired_inputs.inputs(recipe).items()}


def _rotary(model: Any, recipe: Any) -> Any:
    """The tables as the pipeline makes them, None for models without."""
    if not model.config.use_rotary_positional_embeddings:
        return None
    frames, _, height, width = paired_inputs.latent_shape(recipe)
    pipeline: Any = SimpleNamespace(vae_scale_factor_spatial=8, transformer=model)
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipeline, height * 8, width * 8, frames, torch.device("cpu")
    )


def _transformer(recipe: Any, folder: Path) -> Call:
    model: Any = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").eval()
    given, rotary = _tensors(recipe), _rotary(model, recipe)

    @torch.no_grad()
    def call(_index: int) -> torch.Tensor:
        return model(
            hidden_states=given["latents"], encoder_hidden_states=given["text"], timestep=given["timestep"],
            image_rotary_emb=rotary, return_dict=False,
        )[0]  # fmt: skip

    return call


def _train(recipe: Any, folder: Path) -> Call:
    model: Any = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").train()
    if recipe.train.method == "lora":
        _add_lora(model, recipe, folder)
    if recipe.train.recompute == "all":
        model.enable_gradient_checkpointing()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(recipe.optimizer, parameters)
    clip = recipe.train.max_grad_norm
    hooks = _InBackward(recipe.optimizer, parameters) if recipe.train.optimizer_in_backward else None
    schedule: Any = CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler")
    given, rotary = _tensors(recipe), _rotary(model, recipe)
    latents = given["latents"]

    def call(index: int) -> float:
        steps, noise = (torch.from_numpy(f(recipe, index)) for f in (paired_inputs.timesteps, paired_inputs.noise))
        noisy = schedule.add_noise(latents, noise, steps)
        velocity = schedule.get_velocity(latents, noise, steps)

        def backward() -> float:
            output = model(
                hidden_states=noisy, encoder_hidden_states=given["text"], timestep=steps, image_rotary_emb=rotary,
                return_dict=False,
            )[0]  # fmt: skip
            loss = torch.nn.functional.mse_loss(output, velocity)
            loss.backward()
            return loss.item()

        if hooks is not None and clip is not None:
            hooks.measure()
            backward()
            hooks.clip(clip)
        loss = backward()
        if hooks is None and clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()  # of parameters that have a gradient left
        optimizer.zero_grad()
        return loss

    return call


class _InBackward:
    """Each parameter is updated by an optimiser of its own, from a hook; its gradient is gone then."""

    def __init__(self, section: Any, parameters: list[Any]):
        self._own = {parameter: _optimizer(section, [parameter]) for parameter in parameters}
        self._factor, self._squares = 1.0, 0.0
        self._measuring = False
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def measure(self) -> None:
        """The pass that follows is for the gradients' norm alone."""
        self._measuring, self._squares = True, 0.0

    def clip(self, bound: float) -> None:
        """The next pass updates, by gradients of at most this norm."""
        self._measuring, self._factor = False, min(1.0, bound / (self._squares**0.5 + 1e-6))

    def _arrived(self, parameter: Any) -> None:
        if self._measuring:
            self._squares += float(parameter.grad.square().sum())
            parameter.grad = None
            return
        if self._factor != 1.0:
            parameter.grad.mul_(self._factor)
        self._own[parameter].step()
        self._own[parameter].zero_grad()


def _add_lora(model: Any, recipe: Any, folder: Path) -> None:
    """PEFT's layers with the start values that our side wrote; everything else is frozen."""
    from peft import LoraConfig  # noqa: PLC0415 - only one case needs it

    section = recipe.lora
    names = find_layers(parameter_table(paired_inputs.sizes(recipe).transformer), section.targets)
    scale: Any = {"lora_alpha": section.alpha}  # PEFT's annotation says int, its arithmetic takes any number
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=section.rank, **scale, target_modules=names), adapter_name="default")
    arrays = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(arrays.pop("transformer." + name.replace(".default.", ".")))
    if arrays:
        raise ValueError(f"LoRA tensors that PEFT has no place for: {', '.join(arrays)}")


def _optimizer(section: Any, parameters: list[Any]) -> Any:
    shared = {"lr": section.lr, "betas": section.betas, "eps": section.eps, "weight_decay": section.weight_decay}
    if section.name == "came":
        from came_pytorch import CAME  # noqa: PLC0415 - only one case needs it

        return CAME(parameters, **shared)
    return torch.optim.AdamW(parameters, **shared)


def _vae(recipe: Any, folder: Path) -> Any:
    vae: Any = AutoencoderKLCogVideoX.from_pretrained(folder / "vae").eval()
    if tiles := recipe.vae.tiling:
        vae.enable_tiling(
            tiles.tile_height, tiles.tile_width,
            tiles.overlap_height / tiles.tile_height, tiles.overlap_width / tiles.tile_width,
        )  # fmt: skip
    return vae


def _vae_encode(recipe: Any, folder: Path) -> Call:
    vae, given = _vae(recipe, folder), _tensors(recipe)
    return torch.no_grad()(lambda _index: vae.encode(given["video"], return_dict=False)[0].mean)


def _vae_decode(recipe: Any, folder: Path) -> Call:
    vae, given = _vae(recipe, folder), _tensors(recipe)
    return torch.no_grad()(lambda _index: vae.decode(given["latents"], return_dict=False)[0])


def _text(recipe: Any, folder: Path) -> Call:
    encoder, given = T5EncoderModel.from_pretrained(folder / "text_encoder").eval(), _tensors(recipe)
    return torch.no_grad()(lambda _index: encoder(given["input_ids"])[0])


def _generate(recipe: Any, folder: Path) -> Call:
    pipeline: Any = CogVideoXPipeline.from_pretrained(folder)
    pipeline.vae = _vae(recipe, folder)
    pipeline.set_progress_bar_config(disable=True)
    given, video = _tensors(recipe), recipe.video

    @torch.no_grad()
    def call(_index: int) -> torch.Tensor:
        return pipeline(
            prompt=[paired_inputs.PROMPT] * recipe.batch_size, height=video.height, width=video.width,
            num_frames=video.frames, num_inference_steps=recipe.sampling.steps,
            guidance_scale=recipe.sampling.guidance_scale, latents=given["latents"], return_dict=False,
            max_sequence_length=recipe.text_length, output_type="pt",
        )[0]  # fmt: skip

    return call
