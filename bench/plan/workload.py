"""What a recipe asks a card to hold and compute, as sizes alone. No MindSpore.

Bytes and elements are per rank unless a name says otherwise. Letters: B batch, S tokens of text and video, D width.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from bench.flops import Recompute
from core.checkpoint import component_folder, read_json
from core.configs import T5Config, TransformerConfig, VAEConfig
from core.errors import UserError
from core.layout import find_folders
from core.lora_spec import ModuleRank, adapter_table, find_layers
from core.parallel.mesh import part_shape
from core.params import ParamTable
from core.presets import PRESETS
from core.transformer.parameters import parameter_table
from recipes.references import packaged

ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
Code = Literal["ascend", "cpu", "mindone", "torch"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The configs of a model and where they were found."""

    transformer: TransformerConfig
    vae: VAEConfig
    text: T5Config
    source: str


@dataclass(frozen=True, kw_only=True)
class Training:
    """One optimiser step of fine-tuning, as one of ``ranks`` processes sees it.

    ``stored`` and ``computed`` are bytes of a parameter and of an activation; ``trained`` is the table of what is
    trained (the transformer's or a LoRA's) and ``trained_itemsize`` its bytes. ``code`` is whose block is run, which
    decides what a block keeps: ours on Ascend or the CPU, mindone's on Ascend, diffusers' with torch.
    ``feed_forward_chunk``: tokens of a piece of the feed-forward. ``state_itemsize``: bytes of an element of the
    optimiser's averages (ours: fp32 always). ``zero_ranks``: ranks that ZeRO spreads over, None for all.
    ``in_backward``: the optimiser works in the backward pass; ``norm_first``: after another for the gradients' norm.
    """

    config: TransformerConfig
    frames: int
    height: int
    width: int
    text_tokens: int
    batch: int = 1
    accumulation: int = 1
    ranks: int = 1
    sequence_parallel: int = 1
    zero_stage: int = 0
    zero_ranks: int | None = None
    stored: int = 4
    computed: int = 4
    lora: ParamTable | None = None
    optimizer: str = "adamw"
    masters: bool = False
    state_itemsize: int = 4
    ema: bool = False
    recompute: Recompute = "none"
    recompute_every: int = 1
    feed_forward_chunk: int | None = None
    in_backward: bool = False
    norm_first: bool = False
    code: Code = "ascend"

    @property
    def video_tokens(self) -> int:
        """Tokens of the padded latent grid."""
        patch = self.config.patch_size
        frames = -(-self.frames // (self.config.patch_size_t or 1))
        return frames * (self.height // patch) * (self.width // patch)

    @property
    def tokens(self) -> int:
        """S of one whole sample."""
        return self.video_tokens + self.text_tokens

    @property
    def local_tokens(self) -> int:
        """Tokens of one rank: text and video are cut separately, both rounded up."""
        shards = self.sequence_parallel
        return -(-self.video_tokens // shards) - (-self.text_tokens // shards)

    @property
    def in_pieces(self) -> bool:
        """Whether a feed-forward takes several pieces of the batch's tokens."""
        chunk = self.feed_forward_chunk
        return chunk is not None and self.batch * self.local_tokens > chunk

    @property
    def table(self) -> ParamTable:
        """The transformer's parameters."""
        return _table(self.config)

    @property
    def trained(self) -> ParamTable:
        """What the optimiser updates."""
        if self.lora is not None:
            return self.lora
        return {name: spec for name, spec in self.table.items() if spec.trainable}

    @property
    def ours(self) -> bool:
        """Whether ``core.parallel.zero`` holds parameters, masters and gradients."""
        return self.code in {"ascend", "cpu"}

    def parts(self, *, from_stage: int) -> int:
        """Into how many parts ZeRO cuts what it cuts from a stage on."""
        return (self.zero_ranks or self.ranks) if self.zero_stage >= from_stage else 1

    def held(self, table: ParamTable, *, from_stage: int) -> int:
        """Elements of ``table`` that a rank holds if ZeRO cuts them from a stage on."""
        return elements(table, self.parts(from_stage=from_stage), padded=self.ours)

    @property
    def trained_itemsize(self) -> int:
        """Bytes of a trained parameter and of its gradient: a LoRA is fp32 whatever the model's type."""
        return 4 if self.lora is not None else self.stored


@lru_cache(maxsize=8)
def _table(config: TransformerConfig) -> ParamTable:
    return parameter_table(config)


def elements(table: ParamTable, shards: int = 1, *, padded: bool = True) -> int:
    """Elements that one of ``shards`` ranks holds; one has all.

    ``padded``: every tensor is cut between rows, which are filled up where they do not divide (``core.parallel.cut``).
    Otherwise, as in mindone, dimension 0 is cut where it divides and other tensors are whole on every rank.
    """
    return sum(math.prod(held_shape(tuple(s.shape), shards, padded=padded)) for s in table.values())


def held_shape(shape: tuple[int, ...], shards: int, *, padded: bool = True) -> tuple[int, ...]:
    """Shape of what ``elements`` counts of one tensor."""
    if shards == 1 or (not padded and shape[0] % shards):
        return shape
    return part_shape(shape, shards) if padded else (shape[0] // shards, *shape[1:])


def training_of(recipe: Any, sizes: Sizes, *, size: tuple[int, int, int, int] | None = None) -> Training:
    """The training step of a ``train`` recipe; ``size`` (frames, height, width, batch) for one of its buckets."""
    video, section = recipe.video, recipe.train
    frames, height, width, batch = size or (video.frames, video.height, video.width, section.batch_size)
    ratio, patch_t = sizes.vae.spatial_compression_ratio, sizes.transformer.patch_size_t or 1
    latents = -(-((frames - 1) // 4 + 1) // patch_t) * patch_t
    device = recipe.runtime.device
    computed = ITEMSIZE[recipe.runtime.dtype] if device == "ascend" else 4
    # A full fine-tuning stores what the recipe names on the CPU, too, and computes in fp32 there.
    stored = ITEMSIZE[recipe.runtime.dtype] if section.method == "sft" else computed
    lora = None
    if section.method == "lora":
        if not recipe.lora:
            raise UserError("plan: the LoRA's rank is in model.lora, which is not read; add the section lora")
        table, rank = parameter_table(sizes.transformer), ModuleRank(rank=recipe.lora.rank, alpha=1.0)
        lora = adapter_table(table, dict.fromkeys(find_layers(table, recipe.lora.targets), rank))
    return Training(
        config=sizes.transformer,
        frames=latents,
        height=height // ratio,
        width=width // ratio,
        text_tokens=recipe.text.max_length or sizes.transformer.max_text_seq_length,
        batch=batch,
        accumulation=section.gradient_accumulation_steps,
        ranks=recipe.runtime.workers,
        sequence_parallel=recipe.parallel.sequence_parallel,
        zero_stage=recipe.parallel.zero_stage,
        zero_ranks=recipe.parallel.zero_ranks,
        stored=stored,
        computed=computed,
        lora=lora,
        optimizer=recipe.optimizer.name,
        masters=stored < 4 and lora is None,
        ema=recipe.ema is not None,
        recompute=section.recompute,
        recompute_every=section.recompute_every,
        feed_forward_chunk=section.feed_forward_chunk,
        in_backward=section.optimizer_in_backward,
        norm_first=norm_first(section),
        code="ascend" if device == "ascend" else "cpu",
    )


def norm_first(section: Any) -> bool:
    """Whether a step of a recipe's ``train`` computes its gradients twice, first for their norm."""
    return section.optimizer_in_backward and section.max_grad_norm is not None


def buckets_of(recipe: Any) -> list[tuple[int, int, int, int]]:
    """(frames, height, width, batch) of every size that a train recipe runs."""
    if recipe.video.buckets:
        return [(b.frames, b.height, b.width, b.batch_size) for b in recipe.video.buckets]
    return [(recipe.video.frames, recipe.video.height, recipe.video.width, recipe.train.batch_size)]


def sizes_of(model: Any, preset: str | None = None) -> Sizes:
    """Configs of a recipe's ``model``: of ``preset``, of the folders' config.json, or by the folder's published name.

    Raises:
        UserError: neither is there.
    """
    name = preset or model.preset
    if name is None:
        return _from_folders(model)
    if name not in PRESETS:
        raise UserError(f"--model: got {name!r}, need one of {', '.join(PRESETS)}")
    found = PRESETS[name]
    return Sizes(transformer=found.transformer, vae=found.vae, text=found.text, source=f"preset {name}")


def _from_folders(model: Any) -> Sizes:
    names = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    # What an earlier stage will train has the sizes of the model that it starts from.
    found = {name: packaged(path) for name in ("path", *names) if (path := getattr(model, name))}
    model = model.model_copy(update=found)
    given = [path for path in (model.path, model.transformer, model.vae, model.text_encoder) if path]
    if not any(Path(path).exists() for path in given):
        guess = next((n for path in given if (n := published_name(path))), None)
        if guess is None:
            raise UserError(
                f"model: {given[0] if given else 'no folder'} is not on this machine, so its sizes are unknown; add "
                f"--model NAME, one of {', '.join(PRESETS)}"
            )
        found = PRESETS[guess]
        source = f"preset {guess}, from the name of {given[0]}: the folder is not on this machine"
        return Sizes(transformer=found.transformer, vae=found.vae, text=found.text, source=source)
    folders = find_folders(model.path, **{n: getattr(model, n) for n in names})
    transformer = _config(folders.transformer, "transformer", TransformerConfig) or PRESETS["1.5-5b"].transformer
    near = PRESETS["5b" if transformer.use_rotary_positional_embeddings else "2b"]
    vae = _config(folders.vae, "vae", VAEConfig) or near.vae
    text = _config(folders.text_encoder, "text_encoder", T5Config) or near.text
    return Sizes(transformer=transformer, vae=vae, text=text, source=f"config.json in {given[0]}")


def _config(folder: Any, name: str, kind: Any) -> Any:
    if folder is None:
        return None
    path = component_folder(folder, name) / "config.json"
    values = read_json(path)
    if kind is T5Config:
        values = {k: v for k, v in values.items() if k in T5Config.__dataclass_fields__}
    return kind.from_dict(values, str(path))


def published_name(path: str) -> str | None:
    """The preset that a folder's name means (``models/CogVideoX-1.5-5b`` -> ``1.5-5b``), None for other names."""
    found = re.search(r"cogvideox[-_]?(1\.5[-_])?(2b|5b)([-_]i2v)?", Path(path).name.lower())
    found = found or re.search(r"cogvideox[-_]?(1\.5[-_])?(2b|5b)([-_]i2v)?", str(path).lower())
    if found is None:
        return None
    name = ("1.5-" if found[1] else "") + found[2] + ("-i2v" if found[3] else "")
    return name if name in PRESETS else None


def table_bytes(table: ParamTable, itemsize: int) -> int:
    """Bytes of all of a table's parameters."""
    return itemsize * sum(math.prod(spec.shape) for spec in table.values())
