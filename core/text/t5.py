"""The T5 encoder of CogVideoX (arXiv:1910.10683, version 1.1): token numbers to text embeddings.

Letters: B batch, L tokens, D model width, N heads, K features per head, F feed-forward width.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore.ops import relu

from core import ops
from core.configs import T5Config
from core.errors import UserError
from core.model import Model
from core.text.parameters import BIAS_TABLE, is_gated, parameter_table

_MASKED = 1e30  # finite, so a row that is masked throughout gives equal weights and not NaN


def position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of the distance key - query for every pair: int32 ``[L, L]`` (rows are queries).

    Half of the buckets are for keys after the query. Within each half, distances below a quarter of all buckets
    have one bucket each, larger ones share logarithmically wider buckets up to ``max_distance``.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    size = np.abs(distance)
    # Single precision on purpose: double moves some distances across a bucket's edge and so away from checkpoints.
    ratio = np.log(np.maximum(size, exact).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    wide = np.minimum(exact + ratio.astype(np.int64), half - 1)
    return (np.where(size < exact, size, wide) + np.where(distance > 0, half, 0)).astype(np.int32)


def attention_part(p, x_BLD, bias_BNLL, *, num_heads, eps):
    """``x + SelfAttention(norm(x))``, ``[B, L, D]`` unchanged; T5 does not scale the scores by 1/sqrt(K)."""
    name = "layer.0.SelfAttention."
    dtype = p[name + "q.weight"].dtype
    h_BLD = ops.rms_norm(x_BLD, p["layer.0.layer_norm.weight"], eps).astype(dtype)
    split = (x_BLD.shape[0], x_BLD.shape[1], num_heads, -1)
    q_BNLK = ops.dense(p, name + "q", h_BLD).reshape(split).transpose(0, 2, 1, 3)
    k_BNLK = ops.dense(p, name + "k", h_BLD).reshape(split).transpose(0, 2, 1, 3)
    v_BNLK = ops.dense(p, name + "v", h_BLD).reshape(split).transpose(0, 2, 1, 3)
    h_BNLK = ops.attention(q_BNLK, k_BNLK, v_BNLK, scale=1.0, bias=bias_BNLL)
    h_BLD = h_BNLK.transpose(0, 2, 1, 3).reshape(x_BLD.shape[0], x_BLD.shape[1], -1)
    return x_BLD + ops.dense(p, name + "o", h_BLD).astype(ms.float32)


def forward_part(p, x_BLD, *, gated, eps):
    """``x + FeedForward(norm(x))``, ``[B, L, D]`` unchanged."""
    name = "layer.1.DenseReluDense."
    weight = p[name + "wo.weight"]
    h_BLD = ops.rms_norm(x_BLD, p["layer.1.layer_norm.weight"], eps).astype(weight.dtype)
    if gated:
        gate_BLF, h_BLF = ops.dense(p, name + "wi_0", h_BLD), ops.dense(p, name + "wi_1", h_BLD)
        if weight.dtype == ms.float16:
            # The XXL encoder's product and last projection exceed fp16's 65504; transformers keeps wo in fp32 too.
            gate_BLF, h_BLF, weight = gate_BLF.astype(ms.float32), h_BLF.astype(ms.float32), weight.astype(ms.float32)
        h_BLF = ops.gelu_tanh(gate_BLF) * h_BLF
    else:
        h_BLF = relu(ops.dense(p, name + "wi", h_BLD))
    return x_BLD + ops.linear(h_BLF, weight).astype(ms.float32)


def block(p, x_BLD, bias_BNLL, *, num_heads, gated, eps):
    """One encoder block: fp32 ``x [B, L, D]`` and an additive bias ``[1 or B, N, L, L]`` -> fp32 ``[B, L, D]``."""
    return forward_part(p, attention_part(p, x_BLD, bias_BNLL, num_heads=num_heads, eps=eps), gated=gated, eps=eps)


_block = ops.compiled(block)


class T5EncoderModel(Model):
    """Holds the parameters under the published names and encodes token numbers."""

    def __init__(self, config: T5Config, dtype: ms.Type = ms.float32):
        super().__init__(parameter_table(config), dtype)
        self.config = config

    def position_bias(self, length: int) -> ms.Tensor:
        """Bias of block 0's table, which every block adds to its scores: ``[1, N, L, L]`` fp32."""
        config = self.config
        buckets = position_buckets(
            length, config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
        table = self.block("encoder.block.0")[BIAS_TABLE].astype(ms.float32)
        return ops.embedding(ms.Tensor(buckets), table).transpose(2, 0, 1).expand_dims(0)

    def construct(  # pyright: ignore[reportIncompatibleMethodOverride]  (MindSpore types the base as NoReturn)
        self, input_ids: ms.Tensor, attention_mask: ms.Tensor | None = None
    ) -> ms.Tensor:
        """``input_ids [B, L]`` (int) -> ``[B, L, D]`` in the type that is computed in.

        ``attention_mask [B, L]``: 1 to see a token, 0 to hide it. CogVideoX passes none: padding is seen, on purpose.

        Raises:
            UserError: shapes that do not fit.
        """
        if input_ids.ndim != 2:
            raise UserError(f"input_ids: got shape {tuple(input_ids.shape)}, need [batch, length]; add a batch axis")
        largest, smallest = int(input_ids.max()), int(input_ids.min())
        if smallest < 0 or largest >= self.config.vocab_size:
            # A gather outside its table gives zeros or garbage without a word.
            got, need = f"values from {smallest} to {largest}", f"values from 0 to {self.config.vocab_size - 1}"
            raise UserError(f"input_ids: got {got}, need {need}; tokenizer and text encoder do not belong together")
        bias = self.position_bias(input_ids.shape[1])
        if attention_mask is not None:
            got, need = tuple(attention_mask.shape), tuple(input_ids.shape)
            if got != need:
                raise UserError(f"attention_mask: got shape {got}, need {need}, the shape of input_ids")
            seen_B11L = attention_mask.astype(ms.float32).expand_dims(1).expand_dims(1)
            bias = bias + (seen_B11L - 1.0) * _MASKED
        config = self.config
        hidden_states = ops.embedding(input_ids.astype(ms.int32), self.block("shared")["weight"]).astype(ms.float32)
        for index in range(config.num_layers):
            p = self.block(f"encoder.block.{index}")
            p.pop(BIAS_TABLE, None)  # so that block 0 has the signature of the others and shares their graph
            hidden_states = _block(
                p,
                hidden_states,
                bias,
                num_heads=config.num_heads,
                gated=is_gated(config),
                eps=config.layer_norm_epsilon,
            )
        weight = self.block("encoder.final_layer_norm")["weight"]
        return ops.rms_norm(hidden_states, weight, config.layer_norm_epsilon).astype(self.compute_dtype)
