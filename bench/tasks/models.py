"""What the model tasks share: starting MindSpore, and loading the parts that a recipe's ``model`` section names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from bench.context import RunContext
from bench.device import start_mindspore
from core.checkpoint import component_folder, read_json
from core.configs import TransformerConfig, VAEConfig
from core.errors import UserError
from core.layout import ModelFolders, find_folders
from core.presets import PRESETS, ModelPreset


class Models:
    """Loads components on demand and notes what was loaded; nothing stays referenced here.

    Args:
        recipe: a recipe with ``model`` and ``runtime`` sections.
        ctx: receives the notes.
    """

    def __init__(self, recipe: Any, ctx: RunContext):
        self._model, self._ctx, self._device = recipe.model, ctx, recipe.runtime.device
        self._preset: ModelPreset | None = PRESETS[recipe.model.preset] if recipe.model.preset else None
        ctx.note("runtime", start_mindspore(recipe.runtime, recipe.seed))
        from core import ops  # noqa: PLC0415 - imports mindspore, so not before the device is chosen

        self.compute_dtype, note = ops.compute_dtype(recipe.runtime.dtype)
        self.dtype = {"Float32": "fp32", "BFloat16": "bf16", "Float16": "fp16"}[str(self.compute_dtype)]
        ctx.note("computed_dtype", {"requested": recipe.runtime.dtype, "computed": self.dtype, "why": note})

    def _folders(self) -> ModelFolders:
        names = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
        return find_folders(self._model.path, **{name: getattr(self._model, name) for name in names})

    def has(self, name: str) -> bool:
        """Whether a folder of component ``name`` is there (a preset has none)."""
        return self._preset is None and getattr(self._folders(), name) is not None

    def _note(self, name: str, model: Any, read: Callable[[str], Any] | None = None) -> Any:
        count = sum(spec.size for spec in model.table.values())
        origin = f"preset {self._model.preset}, seed {self._model.init_seed}" if self._preset else model.source_types
        self._ctx.note(name, {"parameters": count, "stored_types": origin})
        with self._ctx.stage("digest"):
            digest_parameters(self._ctx, f"input/{name}", model, read)
        return model

    def transformer(self, dtype: str | None = None) -> Any:
        """The transformer, parameters in ``dtype`` (None: the type that is computed in), with ``model.lora`` attached.

        The LoRA is at ``core.lora.attached(transformer)``; it stays a term of its own, so no weight is rounded.
        """
        from core import weights  # noqa: PLC0415
        from core.transformer.model import CogVideoXTransformer3DModel  # noqa: PLC0415

        dtype = dtype or self.dtype
        if self._preset:
            model = CogVideoXTransformer3DModel(self._preset.transformer, weights.ms_type(dtype))
            model.initialize(self._model.init_seed)
        else:
            model = weights.load_transformer(self._folders().need("transformer"), dtype)
        model.compute_dtype = self.compute_dtype
        self._attach_lora(model)
        return self._note("transformer", model)

    def stored_transformer(self, dtype: str) -> tuple[Any, Any] | None:
        """The transformer without its trained parameters, and where they lie; None where they have to be made first.

        For processes that keep parts only. The first one reads all of it for the digests, a tensor at a time.
        """
        from core import weights  # noqa: PLC0415

        if self._preset or self._model.lora is not None:
            return None
        model, stored = weights.stored_transformer(self._folders().need("transformer"), dtype)
        model.compute_dtype = self.compute_dtype
        for name, spec in model.table.items():
            if not spec.trainable:
                model.assign(name, stored.whole(name))
        return (self._note("transformer", model, stored.whole) if self._ctx.rank.index == 0 else model), stored

    def _attach_lora(self, transformer: Any) -> None:
        if self._model.lora is None:
            return
        from core.lora import load_lora  # noqa: PLC0415

        lora = load_lora(transformer, self._model.lora, self._model.lora_scale)
        self._ctx.note(
            "lora",
            {
                "rank": lora.config.rank, "alpha": lora.config.alpha, "alpha_from": lora.alpha_from,
                "scale": lora.scale, "layers": len(lora.modules), "parameters": sum(q.size for q in lora.parameters),
            },
        )  # fmt: skip

    def vae(self, dtype: str | None = None, side: Literal["encoder", "decoder"] | None = None) -> Any:
        """The VAE in ``dtype`` as far as the device has kernels for it (None: the type that is computed in).

        ``side``: the only one that is used. It is resident on a device; on the CPU, where one copy from the page cache
        makes the same bytes, its large parameters are read for each chunk (``core.weights.load_vae``).
        """
        from core import ops, weights  # noqa: PLC0415
        from core.vae.model import AutoencoderKLCogVideoX  # noqa: PLC0415

        kept = self.compute_dtype if dtype is None else ops.compute_dtype(dtype)[0]
        if self._preset:
            model = AutoencoderKLCogVideoX(self._preset.vae, kept).initialize(self._model.init_seed)
        else:
            names = {weights.ms_type(name): name for name in ("fp32", "bf16", "fp16")}
            resident = "all" if side is None else "none" if self._device == "cpu" else side
            model = weights.load_vae(self._folders().need("vae"), names[kept], resident=resident)
            self._ctx.note("vae_resident", resident)
        return self._note("vae", model)

    def text_encoder(self) -> tuple[Any, Any]:
        """The T5 encoder and its tokenizer."""
        from core import weights  # noqa: PLC0415
        from core.text.tokenizer import Tokenizer  # noqa: PLC0415

        if self._preset:
            raise UserError(
                f"model.preset {self._model.preset}: a preset has no tokenizer; run a make-model recipe "
                "and set model.path to its folder"
            )
        folders = self._folders()
        tokenizer = Tokenizer(folders.need("tokenizer"))
        encoder = weights.load_text_encoder(folders.need("text_encoder"), self.dtype)
        if len(tokenizer) > encoder.config.vocab_size:
            raise UserError(
                f"model.tokenizer: got {len(tokenizer)} tokens, the text encoder has {encoder.config.vocab_size}; "
                "need a tokenizer and a text encoder of the same model"
            )
        return self._note("text_encoder", encoder), tokenizer

    def vae_config(self, transformer: TransformerConfig) -> VAEConfig:
        """The VAE's config without its weights; the published one of the transformer's family where no VAE is given."""
        if self._preset:
            return self._preset.vae
        folder = self._folders().vae
        if folder is None:
            self._ctx.note("vae_config", "no vae folder given: the published config of this architecture was used")
            return PRESETS["5b" if transformer.use_rotary_positional_embeddings else "2b"].vae
        path = component_folder(folder, "vae") / "config.json"
        return VAEConfig.from_dict(read_json(path), str(path))

    def scheduler(self, transformer: TransformerConfig, sampler: str) -> Any:
        """The noise schedule with the sampler ``ddim`` or ``dpm``."""
        from core import weights  # noqa: PLC0415

        if self._preset:
            return weights.make_scheduler(self._preset.scheduler, sampler)
        folder = self._folders().scheduler
        if folder is None:
            self._ctx.note("scheduler_config", "no scheduler folder given: the published config was used")
            return weights.make_scheduler(weights.default_scheduler_config(transformer), sampler)
        return weights.load_scheduler(folder, sampler)


def digest_parameters(ctx: RunContext, group: str, model: Any, read: Callable[[str], Any] | None = None) -> None:
    """Records the digest of every parameter of ``model`` as fp32, in the published order.

    ``read`` gives each one's array where the model does not hold what is to be recorded.
    """
    from core.weights import parameter_array  # noqa: PLC0415

    for parameter in model.table:
        ctx.tensor(group, parameter, read(parameter) if read else parameter_array(model, parameter))


def tiling_of(section: Any) -> Any:
    """``core.vae.tiling.TilingConfig`` of a recipe's ``vae.tiling``, None for none; the plan uses it, too."""
    from core.vae.tiling import TilingConfig  # noqa: PLC0415

    tiles = section.tiling
    if tiles is None:
        return None
    # The recipe counts pixels, the VAE fractions of a tile.
    return TilingConfig(
        tile_height=tiles.tile_height,
        tile_width=tiles.tile_width,
        overlap_height=tiles.overlap_height / tiles.tile_height,
        overlap_width=tiles.overlap_width / tiles.tile_width,
        vectorised=tiles.tiles_at_once > 1,
        max_batch=tiles.tiles_at_once,
    )
