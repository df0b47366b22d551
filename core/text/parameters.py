"""Names, shapes and start values of the T5 encoder's parameters, as in published transformers checkpoints."""

from __future__ import annotations

from core.configs import T5Config
from core.params import ParamSpec, ParamTable, norm_spec, prefixed

# Names that a checkpoint may hold besides the table, and the parameter each one repeats (T5 ties its embeddings).
ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}
BIAS_TABLE = "layer.0.SelfAttention.relative_attention_bias.weight"


def _weight(name: str, in_features: int, out_features: int, std: float) -> ParamTable:
    return {f"{name}.weight": ParamSpec(shape=(out_features, in_features), init="normal", std=std)}


def is_gated(config: T5Config) -> bool:
    """True for T5 v1.1's gated-gelu feed-forward, False for T5 1.0's plain relu one."""
    return config.feed_forward_proj == "gated-gelu"


def block_table(config: T5Config) -> ParamTable:
    """Table of one block without the position bias, which only block 0 holds (``BIAS_TABLE``)."""
    inner = config.num_heads * config.d_kv
    attention, forward = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    narrow = config.d_model**-0.5
    table = _weight(f"{attention}.q", config.d_model, inner, (config.d_model * config.d_kv) ** -0.5)
    table |= _weight(f"{attention}.k", config.d_model, inner, narrow)
    table |= _weight(f"{attention}.v", config.d_model, inner, narrow)
    table |= _weight(f"{attention}.o", inner, config.d_model, inner**-0.5)
    table |= norm_spec("layer.0.layer_norm", config.d_model, bias=False)
    for name in ("wi_0", "wi_1") if is_gated(config) else ("wi",):
        table |= _weight(f"{forward}.{name}", config.d_model, config.d_ff, narrow)
    table |= _weight(f"{forward}.wo", config.d_ff, config.d_model, config.d_ff**-0.5)
    return table | norm_spec("layer.1.layer_norm", config.d_model, bias=False)


def parameter_table(config: T5Config) -> ParamTable:
    """All parameters of ``T5EncoderModel``: embedding ``[vocab_size, d_model]``, blocks, final norm."""
    table: ParamTable = {
        "shared.weight": ParamSpec(shape=(config.vocab_size, config.d_model), init="normal", std=1.0),
    }
    for index in range(config.num_layers):
        block = block_table(config)
        if index == 0:
            shape = (config.relative_attention_num_buckets, config.num_heads)
            block[BIAS_TABLE] = ParamSpec(shape=shape, init="normal", std=config.d_model**-0.5)
        table |= prefixed(f"encoder.block.{index}", block)
    return table | norm_spec("encoder.final_layer_norm", config.d_model, bias=False)
