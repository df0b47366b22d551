"""What a training run is built of: clips, optimiser, averages, loss scale, LoRA, validation, from a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.tasks.models import Models, tiling_of
from bench.tasks.processes import share_transformer
from core.data import cache
from core.data.buckets import Bucket
from core.data.manifest import Manifest, read_manifest
from core.errors import UserError

_DTYPES = {"Float32": "fp32", "BFloat16": "bf16", "Float16": "fp16"}
_PUBLISHED_TEXT_LENGTH = 226


class ClipSource:
    """Makes the clips to train on and those to validate on, from caches or encoded in the loop.

    The text encoder and the VAE are loaded once; neither is ever trained.
    """

    def __init__(self, recipe: Any, models: Models, transformer: Any, data_ranks: int = 1):
        self._data_ranks = data_ranks
        self._recipe, self._models, self._config = recipe, models, transformer.config
        self._vae_config = models.vae_config(transformer.config)
        self._encoders: tuple[Callable, Callable] | None = None

    def training(self) -> Any:
        """The clips that are trained on; UserError if they are not what the recipe says."""
        recipe = self._recipe
        sampling = {
            "batch_size": recipe.train.batch_size,
            "accumulation": recipe.train.gradient_accumulation_steps,
            "data_ranks": self._data_ranks,
            "text_drop_prob": recipe.train.text_drop_prob,
        }
        buckets = tuple(Bucket(**bucket.model_dump()) for bucket in recipe.video.buckets or ())
        moving = {"random_start": recipe.online.random_start, "horizontal_flip": recipe.train.horizontal_flip}
        return self._clips("data", recipe.data, sampling, buckets, moving)

    def validation(self) -> Any:
        """The clips of ``validation``: in the file's order, nothing random but the posterior's (fixed) noise."""
        recipe, size = self._recipe, self._recipe.validation.batch_size
        sampling = {"batch_size": size, "shuffle": False}
        given = (bucket.model_dump() for bucket in recipe.video.buckets or ())
        buckets = tuple(Bucket(**values | {"batch_size": size, "keep_probability": 1.0}) for values in given)
        still = {"random_start": False, "horizontal_flip": False}
        return self._clips("validation", recipe.validation, sampling, buckets, still)

    def _clips(self, section: str, data: Any, sampling: dict, buckets: tuple[Bucket, ...], moving: dict) -> Any:
        recipe = self._recipe
        online = recipe.data.encode == "online"
        manifest = read_manifest(
            data.csv,
            video_column=recipe.data.video_column,
            caption_column=recipe.data.caption_column if online else None,
            video_folder=data.video_folder if online else None,
        )
        sampling |= {
            "scaling_factor": self._vae_config.scaling_factor,
            "seed": recipe.seed,
            "odd_latents": recipe.train.odd_latents,
            "patch_size_t": self._config.patch_size_t or 1,
        }
        if online:
            return self._online(data.video_folder, manifest, sampling, buckets, moving)
        clips = self._cached(data, manifest, sampling, buckets)
        self._check_sizes(section, clips)
        return clips

    def _cached(self, data: Any, manifest: Manifest, sampling: dict, buckets: tuple[Bucket, ...]) -> Any:
        from core.data.loader import CachedClips  # noqa: PLC0415 - `check` and tests of the schema need none of this

        size = {"buckets": buckets} if buckets else {"latent_frames": latent_frames(self._recipe)}
        return CachedClips(
            manifest,
            data.text_embed_folder,
            data.video_embed_folder,
            spatial_compression=self._vae_config.spatial_compression_ratio,
            expected=self._expected(manifest, data.video_embed_folder),
            memory=self._recipe.data.memory_mib * 2**20,
            **size,
            **sampling,
        )

    def _expected(self, manifest: Manifest, folder: str) -> dict[str, str]:
        """Digest of the model's own VAE, where there is one and the caches say what made them."""
        from core.weights import parameter_digest  # noqa: PLC0415

        if not self._models.has("vae"):
            return {}
        try:
            identity = cache.read_identity(cache.find_cache(folder, manifest.rows[0].video)) or {}
        except UserError:
            return {}  # CachedClips says it better, with every row
        dtype = _DTYPES.get(str(identity.get("dtype")))
        return {"vae": parameter_digest(self._models.vae(dtype))} if dtype and "vae" in identity else {}

    def _online(
        self, folder: str, manifest: Manifest, sampling: dict, buckets: tuple[Bucket, ...], moving: dict
    ) -> Any:
        from core.data.online import OnlineClips  # noqa: PLC0415

        video, online = self._recipe.video, self._recipe.online
        encode_video, encode_text = self._encoders = self._encoders or self._load_encoders()
        one = {"size": (video.frames, video.height, video.width)}
        several = {"buckets": buckets, "max_crop": video.max_crop, "max_upscale": video.max_upscale}
        return OnlineClips(
            manifest,
            folder,
            encode_video=encode_video,
            encode_text=encode_text,
            frame_stride=online.frame_stride,
            fps=online.fps,
            backend=online.backend,
            **(several if buckets else one),
            **moving,
            **sampling,
        )

    def _load_encoders(self) -> tuple[Callable, Callable]:
        """Frozen: they have no part in the gradients, whose parameters are the optimiser's."""
        import mindspore as ms  # noqa: PLC0415

        vae, tiling = self._models.vae(self._recipe.vae.dtype), tiling_of(self._recipe.vae)
        encoder, tokenizer = self._models.text_encoder()
        length = self._recipe.text.max_length or _PUBLISHED_TEXT_LENGTH
        for model in (vae, encoder):
            for parameter in model.get_parameters():
                parameter.requires_grad = False

        def encode_video(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            mean, std = vae.encode(ms.Tensor(np.ascontiguousarray(pixels)), tiling)
            return mean.astype(ms.float32).asnumpy(), std.astype(ms.float32).asnumpy()

        def encode_text(captions: list[str]) -> np.ndarray:
            ids = np.concatenate([tokenizer.encode(caption, max_length=length).input_ids for caption in captions])
            return encoder(ms.Tensor(ids)).astype(ms.float32).asnumpy()

        return encode_video, encode_text

    def _check_sizes(self, section: str, clips: Any) -> None:
        """The caches must be what the recipe says they are, before a step is spent on them."""
        recipe, config = self._recipe, self._config
        first = clips.sample(0, 0)
        bucket, ratio = clips.buckets[first["bucket"]], self._vae_config.spatial_compression_ratio
        height, width = recipe.video.height or bucket.height, recipe.video.width or bucket.width
        got, need = list(first["latents"].shape[1:]), [config.in_channels, height // ratio, width // ratio]
        if got != need:
            raise UserError(
                f"{section}.video_embed_folder: {first['video']} has latents {got} (channels, height, width), need "
                f"{need} for {height}x{width} pixels; encode the videos at the recipe's size with its VAE"
            )
        length, wide = first["prompt_embeds"].shape
        if wide != config.text_embed_dim:
            text = f"embeddings are {wide} wide, the model needs {config.text_embed_dim}"
            raise UserError(f"{section}.text_embed_folder: {text}")
        if recipe.text.max_length not in (None, length):
            asked = recipe.text.max_length
            raise UserError(f"text.max_length: got {asked}, the cache has {length} tokens; encode again")


def latent_frames(recipe: Any) -> int:
    """Latent frames of a run of one size."""
    return recipe.video.latent_frames or (recipe.video.frames - 1) // 4 + 1


def start_lora(recipe: Any, transformer: Any) -> Any:
    """The LoRA to train: the one ``model.lora`` loaded, or a new one; None for full fine-tuning."""
    from core import lora  # noqa: PLC0415 - imports mindspore

    found = lora.attached(transformer)
    if recipe.train.method == "sft":
        if found is not None:
            found.merge()
        return None
    if recipe.lora is None:
        return found
    config = lora.LoRAConfig(rank=recipe.lora.rank, alpha=recipe.lora.alpha, targets=recipe.lora.targets)
    if found is None:
        return lora.attach(transformer, config, recipe.seed)
    if (found.config.rank, found.config.alpha) != (config.rank, config.alpha):
        raise UserError(
            f"lora: got rank {config.rank}, alpha {config.alpha:g}, but model.lora has rank {found.config.rank}, "
            f"alpha {found.config.alpha:g}: leave out the section lora, or model.lora"
        )
    return found


def load_transformer(recipe: Any, models: Any) -> tuple[Any, Any]:
    """The transformer to train; and where its parameters lie, if each process reads no more than its rows (ZeRO-3)."""
    if recipe.train.method != "sft":
        return models.transformer(None), None
    found = models.stored_transformer(recipe.runtime.dtype) if recipe.parallel.zero_stage == 3 else None
    return found or (models.transformer(recipe.runtime.dtype), None)


def spread(recipe: Any, transformer: Any, parameters: list[Any], processes: Any, stored: Any = None) -> Any:
    """Lays the model out over the processes; what this one holds of ``parameters`` (``core.parallel.zero.Zero``)."""
    from core.parallel.zero import Zero  # noqa: PLC0415 - imports mindspore

    share_transformer(transformer, processes)
    return Zero(
        transformer, parameters, processes.zero, recipe.parallel.zero_stage, replicas=processes.replicas, stored=stored
    )  # fmt: skip


def make_optimizer(recipe: Any, zero: Any) -> Any:
    """AdamW or CAME over what ``zero`` gives this process to update."""
    from core.optim.adamw import AdamW  # noqa: PLC0415
    from core.optim.came import CAME  # noqa: PLC0415
    from core.optim.groups import decay_mask  # noqa: PLC0415

    section = recipe.optimizer
    # Parts have as many dimensions as their tensors, but for leading ones.
    decay = decay_mask(zero.tensors, section.decay)
    options = {"betas": section.betas, "eps": section.eps, "weight_decay": section.weight_decay, "decay": decay}
    if section.name == "adamw":
        return AdamW(zero.parameters, **options)
    return CAME(zero.parameters, **options, **zero.came_options())


def make_in_backward(recipe: Any, transformer: Any, zero: Any, optimizer: Any) -> Any:
    """``core.train.in_backward.InBackward`` if the recipe asks for it, else None."""
    from core.train.in_backward import InBackward  # noqa: PLC0415

    return InBackward(transformer, zero, optimizer) if recipe.train.optimizer_in_backward else None


def make_ema(recipe: Any, parameters: list[Any]) -> Any:
    """The average of ``parameters``, None without the section."""
    from core.optim.ema import EMA  # noqa: PLC0415

    return EMA(parameters, recipe.ema.decay, warmup=recipe.ema.warmup) if recipe.ema else None


def make_loss_scale(recipe: Any) -> Any:
    """The loss scale, None for none."""
    from core.optim.loss_scale import LossScale  # noqa: PLC0415

    section = recipe.train.loss_scale
    if section.kind == "none":
        return None
    if section.kind == "static":
        return LossScale.static(section.value)
    return LossScale.dynamic(section.value, section.factor, section.window)


def make_validation(recipe: Any, source: ClipSource, transformer: Any, scheduler: Any) -> Any:
    """The validation, None without the section."""
    from core.train.validate import Validation  # noqa: PLC0415

    if recipe.validation is None:
        return None
    return Validation(transformer, scheduler, source.validation(), recipe.validation.timesteps, recipe.seed)


def set_recompute(recipe: Any, transformer: Any) -> None:
    """What blocks compute again in the backward pass."""
    if recipe.train.recompute != "none":
        transformer.recompute(recipe.train.recompute, recipe.train.recompute_every)
    transformer.enable_forward_chunking(recipe.train.feed_forward_chunk)


def manifest_digest(path: str | Path, video_column: str) -> str:
    """sha256 of the videos that a CSV file names, in its order."""
    import hashlib  # noqa: PLC0415

    rows = read_manifest(path, video_column=video_column, caption_column=None).rows
    return hashlib.sha256("\n".join(row.video for row in rows).encode()).hexdigest()
