"""What a block keeps between the passes and how it cuts its feed-forward, counted from shapes (docs/design/009, 019).
Free of MindSpore."""

from __future__ import annotations

from core.configs import TransformerConfig

# The fused kernel's row maxima and sums stand in 8 equal fp32 columns (CANN's FlashAttentionScore, documentation).
_FUSED_STATE = 2 * 8 * 4


def kept_bytes(
    config: TransformerConfig, mode: str, *, batch: int, tokens: int, itemsize: int, device: str = "CPU"
) -> int:
    """Bytes that one block keeps in the mode ``all`` or ``keep_attention``.

    Args:
        config: sizes.
        mode: as in ``CogVideoXTransformer3DModel.recompute``; what ``none`` keeps is the compiler's choice.
        batch, tokens: samples, and tokens of each (text and video).
        itemsize: bytes of an activation.
        device: ``CPU`` or ``Ascend``.

    Time embedding and rotary tables are shared by all blocks and not counted.
    """
    inputs = batch * tokens * config.inner_dim * itemsize
    if mode == "all":
        return inputs
    assert mode == "keep_attention", mode
    state = batch * config.num_attention_heads * tokens * _FUSED_STATE if device == "Ascend" else 0
    return 2 * inputs + state


def pieces(rows: int, chunk: int) -> int:
    """How many pieces of at most ``chunk`` of ``rows`` tokens a feed-forward takes; they differ by a token at most."""
    return -(-rows // chunk)
