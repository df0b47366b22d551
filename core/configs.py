"""Sizes of every model, with the field names of the published ``config.json`` files (diffusers, transformers).

Nothing here imports MindSpore. A config is built from a file by ``from_dict`` or taken from ``PRESETS``; presets
spell every number and cite the published config they copy.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Self, get_args, get_origin, get_type_hints

from core.errors import UserError

# Fields that older published files lack, with the value that diffusers 0.42 gives them (the signatures of
# CogVideoXTransformer3DModel, AutoencoderKLCogVideoX and the two schedulers). Sizes never have a default.
_LATER_FIELDS: dict[str, dict[str, Any]] = {
    "TransformerConfig": {
        "patch_size_t": None,
        "patch_bias": True,
        "ofs_embed_dim": None,
        "use_learned_positional_embeddings": False,
        "use_rotary_positional_embeddings": False,
    },
    "VAEConfig": {
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "force_upcast": True,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "invert_scale_latents": False,
    },
    "T5Config": {"pad_token_id": 0, "eos_token_id": 1, "dropout_rate": 0.1, "tie_word_embeddings": False},
    "SchedulerConfig": {
        "trained_betas": None,
        "clip_sample_range": 1.0,
        "sample_max_value": 1.0,
        "steps_offset": 0,
        "snr_shift_scale": 3.0,
        "set_alpha_to_one": True,
        "rescale_betas_zero_snr": False,
        "clip_sample": True,
    },
}


def _accepts(annotation: Any, value: Any) -> bool:
    options = get_args(annotation) if get_origin(annotation) is not tuple and get_args(annotation) else (annotation,)
    for option in options:
        if option in (None, type(None)):
            if value is None:
                return True
        elif get_origin(option) is tuple:
            inner = get_args(option)[0]
            if isinstance(value, list | tuple) and all(_accepts(inner, v) for v in value):
                return True
        elif option is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return True
        elif option is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        elif isinstance(value, option):
            return True
    return False


def _type_name(annotation: Any) -> str:
    return str(annotation) if get_args(annotation) else annotation.__name__


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What the four configs share: strict reading, checking and writing."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _accepts(hints[field.name], value):
                raise UserError(f"{field.name}: got {value!r}, need {_type_name(hints[field.name])}")
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            elif hints[field.name] is float:
                object.__setattr__(self, field.name, float(value))
        self.check()

    def check(self) -> None:
        """Raises ``UserError`` where values do not fit together."""

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str, *, ignore: frozenset[str] = frozenset()) -> Self:
        """Builds the config from the mapping of a ``config.json``; keys that begin with ``_`` are its metadata.

        Raises:
            UserError: unknown or missing keys, a value of the wrong type; the text names ``source``.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        later = _LATER_FIELDS[cls.__name__]
        known = {k: v for k, v in values.items() if k in fields}
        unknown = [k for k in values if k not in fields and not k.startswith("_") and k not in ignore]
        problems = []
        for key in unknown:
            near = difflib.get_close_matches(key, fields, 1)
            problems.append(f"unknown field {key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        problems += [f"missing field {k!r}" for k in sorted(fields - set(known) - set(later))]
        if problems:
            raise UserError(f"{source}: {'; '.join(problems)}")
        try:
            return cls(**{**{k: v for k, v in later.items() if k in fields}, **known})
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values (tuples become lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def _need(condition: bool, got: str, need: str) -> None:
    if not condition:
        raise UserError(f"got {got}, need {need}")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(_Config):
    """``transformer/config.json`` of CogVideoX (diffusers ``CogVideoXTransformer3DModel``)."""

    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int
    flip_sin_to_cos: bool
    freq_shift: int
    time_embed_dim: int
    ofs_embed_dim: int | None
    text_embed_dim: int
    num_layers: int
    dropout: float
    attention_bias: bool
    sample_width: int
    sample_height: int
    sample_frames: int
    patch_size: int
    patch_size_t: int | None
    temporal_compression_ratio: int
    max_text_seq_length: int
    activation_fn: str
    timestep_activation_fn: str
    norm_elementwise_affine: bool
    norm_eps: float
    spatial_interpolation_scale: float
    temporal_interpolation_scale: float
    use_rotary_positional_embeddings: bool
    use_learned_positional_embeddings: bool
    patch_bias: bool

    def check(self) -> None:
        """Values that this implementation computes; others are refused rather than computed wrongly."""
        for name in ("num_attention_heads", "attention_head_dim", "num_layers", "patch_size", "time_embed_dim"):
            _need(getattr(self, name) > 0, f"{name} {getattr(self, name)}", "a positive number")
        _need(
            self.patch_size_t is None or self.patch_size_t > 0, f"patch_size_t {self.patch_size_t}", "null or positive"
        )
        _need(self.activation_fn == "gelu-approximate", f"activation_fn {self.activation_fn!r}", "'gelu-approximate'")
        _need(
            self.timestep_activation_fn == "silu", f"timestep_activation_fn {self.timestep_activation_fn!r}", "'silu'"
        )
        _need(self.dropout == 0.0, f"dropout {self.dropout}", "0.0 (every published CogVideoX has no dropout)")
        _need(
            self.use_rotary_positional_embeddings or not self.use_learned_positional_embeddings,
            "use_learned_positional_embeddings without use_rotary_positional_embeddings",
            "rotary positions with learned ones (no checkpoint has the other form)",
        )
        _need(
            self.ofs_embed_dim in (None, self.time_embed_dim),
            f"ofs_embed_dim {self.ofs_embed_dim} with time_embed_dim {self.time_embed_dim}",
            "null or the same width (the two embeddings are added)",
        )
        multiple = 8 if self.use_rotary_positional_embeddings else 2
        _need(
            self.attention_head_dim % multiple == 0,
            f"attention_head_dim {self.attention_head_dim}",
            f"a multiple of {multiple}",
        )
        _need(
            self.use_rotary_positional_embeddings or self.inner_dim % 16 == 0,
            f"{self.num_attention_heads} heads x {self.attention_head_dim}",
            "a product divisible by 16 for sincos positions",
        )

    @property
    def inner_dim(self) -> int:
        """Width of the residual stream: heads x head size."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, kw_only=True)
class VAEConfig(_Config):
    """``vae/config.json`` (diffusers ``AutoencoderKLCogVideoX``)."""

    in_channels: int
    out_channels: int
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    latent_channels: int
    layers_per_block: int
    act_fn: str
    norm_eps: float
    norm_num_groups: int
    temporal_compression_ratio: float
    sample_height: int
    sample_width: int
    scaling_factor: float
    shift_factor: float | None
    latents_mean: tuple[float, ...] | None
    latents_std: tuple[float, ...] | None
    force_upcast: bool
    use_quant_conv: bool
    use_post_quant_conv: bool
    invert_scale_latents: bool

    def check(self) -> None:
        """Values that this implementation computes."""
        count = len(self.block_out_channels)
        _need(self.act_fn == "silu", f"act_fn {self.act_fn!r}", "'silu'")
        for name, kind in (("down_block_types", "CogVideoXDownBlock3D"), ("up_block_types", "CogVideoXUpBlock3D")):
            blocks = getattr(self, name)
            _need(blocks == (kind,) * count, f"{name} {list(blocks)}", f"{count} times {kind!r}")
        _need(
            self.temporal_compression_ratio in (1, 2, 4, 8),
            f"temporal_compression_ratio {self.temporal_compression_ratio}",
            "1, 2, 4 or 8",
        )
        for channels in self.block_out_channels:
            _need(
                channels % self.norm_num_groups == 0,
                f"block_out_channels {list(self.block_out_channels)}",
                f"multiples of norm_num_groups {self.norm_num_groups}",
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; the ratio is whole, as published: diffusers' pipeline slices with it."""
        return super().to_dict() | {"temporal_compression_ratio": int(self.temporal_compression_ratio)}

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class T5Config(_Config):
    """``text_encoder/config.json`` (transformers ``T5EncoderModel``, the fields that the encoder uses)."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    feed_forward_proj: str
    dropout_rate: float
    tie_word_embeddings: bool
    pad_token_id: int
    eos_token_id: int

    def check(self) -> None:
        """Values that this implementation computes."""
        _need(
            self.feed_forward_proj in ("gated-gelu", "relu"),
            f"feed_forward_proj {self.feed_forward_proj!r}",
            "'gated-gelu' (T5 v1.1) or 'relu' (T5 1.0)",
        )


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(_Config):
    """``scheduler/scheduler_config.json`` (diffusers ``CogVideoXDDIMScheduler``, ``CogVideoXDPMScheduler``)."""

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: tuple[float, ...] | None
    clip_sample: bool
    clip_sample_range: float
    set_alpha_to_one: bool
    steps_offset: int
    prediction_type: str
    sample_max_value: float
    timestep_spacing: str
    rescale_betas_zero_snr: bool
    snr_shift_scale: float

    def check(self) -> None:
        """Values that this implementation computes."""
        allowed = {
            "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
            "prediction_type": ("epsilon", "sample", "v_prediction"),
            "timestep_spacing": ("leading", "linspace", "trailing", "linear-quadratic"),
        }
        for name, values in allowed.items():
            _need(getattr(self, name) in values, f"{name} {getattr(self, name)!r}", f"one of {', '.join(values)}")
        _need(self.num_train_timesteps > 0, f"num_train_timesteps {self.num_train_timesteps}", "a positive number")
