"""The transformer's mathematics as pure functions over a block's parameters ``p`` (names inside the block).

Letters: B batch, V video tokens, L text tokens, S = L + V joint sequence, D width, N heads, K head size,
E width of the time embedding, F latent frames, C channels, H, W latent height and width.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import mint

from core import ops
from core.transformer.tokens import same_heads, same_tokens


def patchify(x_BFCHW, patch: int, patch_t: int):
    """``[B, F, C, H, W] -> [B, V, C*pt*p*p]`` with V = F/pt * H/p * W/p; inside a patch the channel comes first."""
    batch, frames, channels, height, width = x_BFCHW.shape
    t, h, w = frames // patch_t, height // patch, width // patch
    x = x_BFCHW.reshape(batch * t, patch_t, channels * h, patch, w, patch)
    x = x.transpose(0, 2, 4, 1, 3, 5)  # [B*t, C*h, w, pt, p, p]
    x = x.reshape(batch * t, channels, h * w, patch_t * patch * patch).transpose(0, 2, 1, 3)
    return x.reshape(batch, t * h * w, channels * patch_t * patch * patch)


def unpatchify(x_BVP, grid: tuple, channels: int, patch: int, patch_t: int):
    """``[B, V, C*pt*p*p] -> [B, F, C, H, W]`` for the token grid ``(t, h, w)``; the inverse of ``patchify``."""
    t, h, w = grid
    batch = x_BVP.shape[0]
    x = x_BVP.reshape(batch * t, h * w, channels, patch_t * patch * patch).transpose(0, 2, 1, 3)
    x = x.reshape(batch * t, channels * h, w, patch_t, patch, patch)
    x = x.transpose(0, 3, 1, 4, 2, 5)  # [B*t, pt, C*h, p, w, p]
    return x.reshape(batch, t * patch_t, channels, h * patch, w * patch)


def sinusoid(values_B, dim: int, *, flip_sin_to_cos: bool, freq_shift: int):
    """Sinusoidal embedding ``[B] -> [B, dim]`` in fp32 (half precision would merge neighbouring time steps)."""
    half = dim // 2
    exponents = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    angles = values_B.astype(ms.float32).reshape(-1, 1) * ms.Tensor(np.exp(exponents)[None])
    parts = (mint.cos(angles), mint.sin(angles)) if flip_sin_to_cos else (mint.sin(angles), mint.cos(angles))
    return mint.cat(parts, dim=-1)


def embed_values(p, values_BX):
    """The two-layer SiLU network after a sinusoid: ``[B, X] -> [B, E]``."""
    return ops.dense(p, "linear_2", ops.silu(ops.dense(p, "linear_1", values_BX)))


def embed_patches(p, patches_BVP, text_BLX):
    """Projects patches and text to the model's width: ``-> ([B, V, D], [B, L, D])``.

    The 1.0 checkpoints store a strided convolution ``[D, C, p, p]``; on patches it is this matrix product.
    """
    weight = p["proj.weight"].reshape(p["proj.weight"].shape[0], -1)
    bias = p.get("proj.bias", None)
    return ops.linear(patches_BVP, weight, bias), ops.dense(p, "text_proj", text_BLX)


def _norm(p, name, x, eps):
    if name + ".weight" in p:
        return ops.layer_norm(x, p[name + ".weight"], p[name + ".bias"], eps)
    return ops.layer_norm(x, None, None, eps)


def _adaptive_norm(p, name, x, scale, shift, eps):
    if name + ".weight" in p:
        return ops.adaptive_norm(x, p[name + ".weight"], p[name + ".bias"], scale, shift, eps)
    return ops.adaptive_norm(x, None, None, scale, shift, eps)


def modulated_norm(p, name, hidden_BVD, encoder_BLD, temb_BE, eps):
    """Expert adaptive LayerNorm (paper, section 2.2): one norm, separate shift, scale and gate for video and text.

    Returns ``(video [B, V, D], text [B, L, D], video gate [B, 1, D], text gate [B, 1, D])``.
    """
    modulation = ops.dense(p, name + ".linear", ops.silu(temb_BE))
    shift, scale, gate, text_shift, text_scale, text_gate = mint.chunk(
        modulation.reshape(temb_BE.shape[0], 1, -1), 6, -1
    )
    hidden = _adaptive_norm(p, name + ".norm", hidden_BVD, scale, shift, eps)
    encoder = _adaptive_norm(p, name + ".norm", encoder_BLD, text_scale, text_shift, eps)
    return hidden, encoder, gate, text_gate


def split_heads(x_BSD, num_heads: int):
    """``[B, S, D] -> [B, N, S, K]``."""
    batch, length, dim = x_BSD.shape
    return x_BSD.reshape(batch, length, num_heads, dim // num_heads).transpose(0, 2, 1, 3)


def attention_inputs(p, x_BSD, cos_SK, sin_SK, *, num_heads: int):
    """Queries, keys and values ``[B, N, S, K]``, normalised and turned; rotary tables may be None (2B)."""
    q = split_heads(ops.dense(p, "attn1.to_q", x_BSD), num_heads)
    k = split_heads(ops.dense(p, "attn1.to_k", x_BSD), num_heads)
    v = split_heads(ops.dense(p, "attn1.to_v", x_BSD), num_heads)
    q, k = _norm(p, "attn1.norm_q", q, 1e-6), _norm(p, "attn1.norm_k", k, 1e-6)
    if cos_SK is not None:
        q, k = ops.rotate(q, cos_SK, sin_SK), ops.rotate(k, cos_SK, sin_SK)
    return q, k, v


def feed_forward(p, x_BSD):
    """``[B, S, D] -> [B, S, 4D] -> [B, S, D]`` with GELU (tanh form)."""
    return ops.dense(p, "ff.net.2", ops.gelu_tanh(ops.dense(p, "ff.net.0.proj", x_BSD)))


def _before_attention(p, hidden_BVD, encoder_BLD, temb_BE, cos_SK, sin_SK, num_heads, eps):
    hidden, encoder, gate, text_gate = modulated_norm(p, "norm1", hidden_BVD, encoder_BLD, temb_BE, eps)
    q, k, v = attention_inputs(p, mint.cat((encoder, hidden), dim=1), cos_SK, sin_SK, num_heads=num_heads)
    return q, k, v, gate, text_gate


def _after_attention(p, hidden_BVD, encoder_BLD, temb_BE, out_BNSK, gate, text_gate, eps, feed_forward):
    text_length = encoder_BLD.shape[1]
    batch, heads, length, size = out_BNSK.shape
    merged = out_BNSK.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
    attended = ops.dense(p, "attn1.to_out.0", merged)
    hidden_BVD = hidden_BVD + gate * attended[:, text_length:]
    encoder_BLD = encoder_BLD + text_gate * attended[:, :text_length]

    hidden, encoder, gate, text_gate = modulated_norm(p, "norm2", hidden_BVD, encoder_BLD, temb_BE, eps)
    out = feed_forward(p, mint.cat((encoder, hidden), dim=1))
    return hidden_BVD + gate * out[:, text_length:], encoder_BLD + text_gate * out[:, :text_length]


def block(
    p, hidden_BVD, encoder_BLD, temb_BE, cos_SK, sin_SK, *, num_heads: int, eps: float, to_heads=same_heads,
    to_tokens=same_tokens, feed_forward=feed_forward,
):  # fmt: skip
    """One expert transformer block: ``(video [B, V, D], text [B, L, D]) ->`` the same.

    Attention is full, over text and video together. ``to_heads`` and ``to_tokens``: see ``core.transformer.tokens``;
    ``feed_forward``: in place of the function of that name.
    """
    q, k, v, gate, text_gate = _before_attention(p, hidden_BVD, encoder_BLD, temb_BE, cos_SK, sin_SK, num_heads, eps)
    q, k, v = to_heads(q, k, v)
    out = to_tokens(ops.attention(q, k, v, scale=q.shape[3] ** -0.5))
    return _after_attention(p, hidden_BVD, encoder_BLD, temb_BE, out, gate, text_gate, eps, feed_forward)


def block_keeping(
    p, hidden_BVD, encoder_BLD, temb_BE, cos_SK, sin_SK, *, num_heads: int, eps: float, to_heads=same_heads,
    to_tokens=same_tokens, feed_forward=feed_forward,
):  # fmt: skip
    """``block`` that also hands out its attention: ``(video, text, *kept)``."""
    q, k, v, gate, text_gate = _before_attention(p, hidden_BVD, encoder_BLD, temb_BE, cos_SK, sin_SK, num_heads, eps)
    q, k, v = to_heads(q, k, v)
    kept = ops.attention_keeping(q, k, v, scale=q.shape[3] ** -0.5)
    out = to_tokens(kept[0].astype(q.dtype))
    hidden, encoder = _after_attention(p, hidden_BVD, encoder_BLD, temb_BE, out, gate, text_gate, eps, feed_forward)
    return hidden, encoder, *kept


def block_again(
    p, hidden_BVD, encoder_BLD, temb_BE, cos_SK, sin_SK, kept, *, num_heads: int, eps: float, to_heads=same_heads,
    to_tokens=same_tokens, feed_forward=feed_forward,
):  # fmt: skip
    """``block`` with the attention that ``block_keeping`` handed out: only the rest is computed."""
    q, k, v, gate, text_gate = _before_attention(p, hidden_BVD, encoder_BLD, temb_BE, cos_SK, sin_SK, num_heads, eps)
    q, k, v = to_heads(q, k, v)
    out = to_tokens(ops.attention_again(q, k, v, kept, scale=q.shape[3] ** -0.5))
    return _after_attention(p, hidden_BVD, encoder_BLD, temb_BE, out, gate, text_gate, eps, feed_forward)


def head(p, hidden_BVD, temb_BE, *, eps: float):
    """Final norms and projection: ``[B, V, D] -> [B, V, C*pt*p*p]``."""
    hidden = _norm(p, "norm_final", hidden_BVD, eps)
    modulation = ops.dense(p, "norm_out.linear", ops.silu(temb_BE))
    shift, scale = mint.chunk(modulation.reshape(temb_BE.shape[0], 1, -1), 2, -1)
    return ops.dense(p, "proj_out", _adaptive_norm(p, "norm_out.norm", hidden, scale, shift, eps))
