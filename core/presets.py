"""Named model families. Published sizes copy the published configs; invented ones say so.

Sources of the published numbers: the config.json files of zai-org/CogVideoX-2b, -5b, -5b-I2V, CogVideoX1.5-5B and
CogVideoX1.5-5B-I2V as collected in the converters ``scripts/convert_cogvideox_to_diffusers.py`` (diffusers) and
``tools/convert_weight_sat2hf.py`` (zai-org/CogVideo), and google/t5-v1_1-xxl.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.configs import SchedulerConfig, T5Config, TransformerConfig, VAEConfig


@dataclass(frozen=True, kw_only=True)
class ModelPreset:
    """One family: the four configs, and whether weights of it were ever published."""

    transformer: TransformerConfig
    vae: VAEConfig
    text: T5Config
    scheduler: SchedulerConfig
    published: bool
    note: str


_TRANSFORMER_2B = TransformerConfig(
    num_attention_heads=30,
    attention_head_dim=64,
    in_channels=16,
    out_channels=16,
    flip_sin_to_cos=True,
    freq_shift=0,
    time_embed_dim=512,
    ofs_embed_dim=None,
    text_embed_dim=4096,
    num_layers=30,
    dropout=0.0,
    attention_bias=True,
    sample_width=90,
    sample_height=60,
    sample_frames=49,
    patch_size=2,
    patch_size_t=None,
    temporal_compression_ratio=4,
    max_text_seq_length=226,
    activation_fn="gelu-approximate",
    timestep_activation_fn="silu",
    norm_elementwise_affine=True,
    norm_eps=1e-5,
    spatial_interpolation_scale=1.875,
    temporal_interpolation_scale=1.0,
    use_rotary_positional_embeddings=False,
    use_learned_positional_embeddings=False,
    patch_bias=True,
)
_TRANSFORMER_5B = replace(_TRANSFORMER_2B, num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True)
_TRANSFORMER_5B_I2V = replace(_TRANSFORMER_5B, in_channels=32, use_learned_positional_embeddings=True)
_TRANSFORMER_1_5_5B = replace(
    _TRANSFORMER_5B, sample_height=300, sample_width=300, sample_frames=81, patch_size_t=2, patch_bias=False
)
_TRANSFORMER_1_5_5B_I2V = replace(_TRANSFORMER_1_5_5B, in_channels=32, ofs_embed_dim=512)
_TRANSFORMER_1_5_2B = replace(_TRANSFORMER_1_5_5B, num_attention_heads=30, num_layers=30)

_VAE_5B = VAEConfig(
    in_channels=3,
    out_channels=3,
    down_block_types=("CogVideoXDownBlock3D",) * 4,
    up_block_types=("CogVideoXUpBlock3D",) * 4,
    block_out_channels=(128, 256, 256, 512),
    latent_channels=16,
    layers_per_block=3,
    act_fn="silu",
    norm_eps=1e-6,
    norm_num_groups=32,
    temporal_compression_ratio=4,
    sample_height=480,
    sample_width=720,
    scaling_factor=0.7,
    shift_factor=None,
    latents_mean=None,
    latents_std=None,
    force_upcast=True,
    use_quant_conv=False,
    use_post_quant_conv=False,
    invert_scale_latents=False,
)
_VAE_2B = replace(_VAE_5B, scaling_factor=1.15258426)

_T5_XXL = T5Config(
    vocab_size=32128,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
    feed_forward_proj="gated-gelu",
    dropout_rate=0.1,
    tie_word_embeddings=False,
    pad_token_id=0,
    eos_token_id=1,
)

_SCHEDULER_5B = SchedulerConfig(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    trained_betas=None,
    clip_sample=False,
    clip_sample_range=1.0,
    set_alpha_to_one=True,
    steps_offset=0,
    prediction_type="v_prediction",
    sample_max_value=1.0,
    timestep_spacing="trailing",
    rescale_betas_zero_snr=True,
    snr_shift_scale=1.0,
)
_SCHEDULER_2B = replace(_SCHEDULER_5B, snr_shift_scale=3.0)

# The tiny family: every mechanism of the published models at a size for a laptop. Invented here, no published weights.
_TINY = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 4, "time_embed_dim": 64}
_TINY_SAMPLE = {"text_embed_dim": 64, "sample_height": 8, "sample_width": 12, "sample_frames": 17}
_TRANSFORMER_TINY_2B = replace(_TRANSFORMER_2B, **_TINY, **_TINY_SAMPLE)
_TRANSFORMER_TINY_5B = replace(_TRANSFORMER_5B, **_TINY, **_TINY_SAMPLE)
_TRANSFORMER_TINY_1_5 = replace(_TRANSFORMER_1_5_5B, **_TINY, text_embed_dim=64)
_VAE_TINY = replace(
    _VAE_5B,
    block_out_channels=(16, 32, 32, 64),
    norm_num_groups=8,
    layers_per_block=1,
    sample_height=64,
    sample_width=96,
)
# For moving shapes at 32x32: a transformer a little wider, which learns shapes sooner, and a VAE of three levels, so
# that 4x4 pixels are a latent (4 channels or more to a norm's group: with fewer the norms hide colour).
_TRANSFORMER_WORLD = replace(_TRANSFORMER_TINY_1_5, num_attention_heads=6)
_VAE_WORLD = replace(
    _VAE_TINY,
    down_block_types=("CogVideoXDownBlock3D",) * 3,
    up_block_types=("CogVideoXUpBlock3D",) * 3,
    block_out_channels=(8, 16, 32),
    norm_num_groups=2,
    sample_height=32,
    sample_width=32,
)
_T5_TINY = replace(_T5_XXL, vocab_size=512, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)

_NO_WEIGHTS = "invented size, no published weights"

PRESETS: dict[str, ModelPreset] = {
    "2b": ModelPreset(
        transformer=_TRANSFORMER_2B,
        vae=_VAE_2B,
        text=_T5_XXL,
        scheduler=_SCHEDULER_2B,
        published=True,
        note="CogVideoX-2B",
    ),
    "5b": ModelPreset(
        transformer=_TRANSFORMER_5B,
        vae=_VAE_5B,
        text=_T5_XXL,
        scheduler=_SCHEDULER_5B,
        published=True,
        note="CogVideoX-5B",
    ),
    "5b-i2v": ModelPreset(
        transformer=_TRANSFORMER_5B_I2V,
        vae=_VAE_5B,
        text=_T5_XXL,
        scheduler=_SCHEDULER_5B,
        published=True,
        note="CogVideoX-5B-I2V",
    ),
    "1.5-5b": ModelPreset(
        transformer=_TRANSFORMER_1_5_5B,
        vae=_VAE_5B,
        text=_T5_XXL,
        scheduler=_SCHEDULER_5B,
        published=True,
        note="CogVideoX1.5-5B",
    ),
    "1.5-5b-i2v": ModelPreset(
        transformer=_TRANSFORMER_1_5_5B_I2V,
        vae=_VAE_5B,
        text=_T5_XXL,
        scheduler=_SCHEDULER_5B,
        published=True,
        note="CogVideoX1.5-5B-I2V",
    ),
    "1.5-2b": ModelPreset(
        transformer=_TRANSFORMER_1_5_2B,
        vae=_VAE_5B,
        text=_T5_XXL,
        scheduler=_SCHEDULER_5B,
        published=False,
        note=f"the 2B's width and depth in the 1.5 architecture: {_NO_WEIGHTS}",
    ),
    "tiny-1.0-2b": ModelPreset(
        transformer=_TRANSFORMER_TINY_2B,
        vae=_VAE_TINY,
        text=_T5_TINY,
        scheduler=_SCHEDULER_2B,
        published=False,
        note=f"1.0 with sincos positions: {_NO_WEIGHTS}",
    ),
    "tiny-1.0-5b": ModelPreset(
        transformer=_TRANSFORMER_TINY_5B,
        vae=_VAE_TINY,
        text=_T5_TINY,
        scheduler=_SCHEDULER_5B,
        published=False,
        note=f"1.0 with rotary positions: {_NO_WEIGHTS}",
    ),
    "tiny-1.5": ModelPreset(
        transformer=_TRANSFORMER_TINY_1_5,
        vae=_VAE_TINY,
        text=_T5_TINY,
        scheduler=_SCHEDULER_5B,
        published=False,
        note=f"1.5 architecture: {_NO_WEIGHTS}",
    ),
    "tiny-world": ModelPreset(
        transformer=_TRANSFORMER_WORLD,
        vae=_VAE_WORLD,
        text=_T5_TINY,
        scheduler=_SCHEDULER_5B,
        published=False,
        note=f"1.5 architecture for 32x32 pixels: {_NO_WEIGHTS}",
    ),
}
