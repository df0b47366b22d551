"""What one transformer block keeps and needs, tensor by tensor, read off the code that runs it.

A row is (what, width in D, bytes or None for the activations' type). "Saved" are the tensors that the block's own
gradient reads (docs/design/016 has the reasons); "moving" is what the largest operator of the backward pass holds
beside them: the gradient of the feed-forward's hidden layer (4 D), of its input (4 D) and of the residual stream (D).
"""

from __future__ import annotations

from bench.plan.workload import Training
from core.transformer.kept import kept_bytes
from core.transformer.parameters import FEED_FORWARD_FACTOR as FF

Rows = tuple[tuple[str, float, int | None], ...]

# core.transformer.layers with core.ops_ascend: norms compute in fp32 and keep their fp32 input.
OURS: Rows = (
    ("norm1 input in fp32", 1, 4),
    ("norm1 before scale and shift", 1, None),
    ("text and video joined, input of q, k, v", 1, None),
    ("q and k in fp32, inputs of their norms", 2, 4),
    ("q and k turned, v: inputs of attention", 3, None),
    ("attention's output", 1, None),
    ("the same with heads merged, input of to_out", 1, None),
    ("to_out's output, for the gate's gradient", 1, None),
    ("norm2 input in fp32", 1, 4),
    ("norm2 before scale and shift", 1, None),
    ("text and video joined, input of the feed-forward", 1, None),
    ("feed-forward hidden before GELU", FF, None),
    ("feed-forward hidden after GELU", FF, None),
    ("feed-forward output, for the gate's gradient", 1, None),
)
# What PyNative on the CPU keeps beside those: heads are views of what the linear layers give, and the gradients of our
# kernels hold their results.
CPU_MORE: Rows = (
    ("q, k and v as the linear layers give them", 3, None),
    ("q and k after their norms", 2, None),
)
# diffusers' CogVideoXBlock (and mindone's copy): norms in the activations' type, the input of norm1 is the block's.
DIFFUSERS: Rows = (
    ("norm1 before scale and shift", 1, None),
    ("text and video joined, input of q, k, v", 1, None),
    ("q and k, inputs of their norms", 2, None),
    ("q and k turned, v: inputs of attention", 3, None),
    ("attention's output", 1, None),
    ("the same with heads merged, input of to_out", 1, None),
    ("to_out's output, for the gate's gradient", 1, None),
    ("residual stream between the halves, input of norm2", 1, None),
    ("norm2 before scale and shift", 1, None),
    ("text and video joined, input of the feed-forward", 1, None),
    ("feed-forward hidden before GELU", FF, None),
    ("feed-forward hidden after GELU", FF, None),
    ("feed-forward output, for the gate's gradient", 1, None),
)
# The largest operator of the backward pass, beside what is saved.
MOVING: Rows = (
    ("gradient after GELU", FF, None),
    ("gradient before GELU", FF, None),
    ("gradient of the residual stream", 1, None),
)
# On the CPU besides, in units of D: what the inner gradient of a block keeps until it ends, copies where heads are cut
# and merged, and holes of the pool. Not read off the code: the one number of one measured case, "61 frames"
# (docs/design/016), which the other cases test.
CPU_MOVING: Rows = (("inner gradient and the pool", 24, None),)
# Inference: what is alive while the feed-forward runs.
FORWARD: Rows = (
    ("residual stream", 1, None),
    ("joined input of the feed-forward", 1, None),
    ("feed-forward hidden before GELU", FF, None),
    ("feed-forward hidden after GELU", FF, None),
)
# Row maxima and sums of the fused attention kernel: two tensors of 8 equal fp32 columns (core.transformer.kept).
FUSED_STATE_PER_HEAD_AND_TOKEN = 2 * 8 * 4
LOGSUMEXP_PER_HEAD_AND_TOKEN = 4  # torch's fused kernels


def rows_bytes(rows: Rows, *, tokens: int, width: int, itemsize: int) -> int:
    """Bytes of the rows for ``tokens`` (all samples of the batch) and D = ``width``."""
    return round(sum(part * (bytes_ or itemsize) for _, part, bytes_ in rows) * tokens * width)


def attention_state(work: Training) -> int:
    """Bytes of the softmax statistics that one block's attention gradient needs; the CPU computes them again."""
    each = {"cpu": 0, "torch": LOGSUMEXP_PER_HEAD_AND_TOKEN}.get(work.code, FUSED_STATE_PER_HEAD_AND_TOKEN)
    return work.batch * work.config.num_attention_heads * work.local_tokens * each


def saved_bytes(work: Training) -> int:
    """Bytes that one block's gradient reads besides the block's input: what ``recompute: none`` keeps."""
    rows = DIFFUSERS if work.code in ("mindone", "torch") else OURS + (CPU_MORE if work.code == "cpu" else ())
    tokens = work.batch * work.local_tokens
    width, item = work.config.inner_dim, work.computed
    return rows_bytes(rows, tokens=tokens, width=width, itemsize=item) + attention_state(work)


def kept_between_passes(work: Training, index: int) -> int:
    """Bytes that block ``index`` keeps from the forward to the backward pass, its input included."""
    tokens, width = work.batch * work.local_tokens, work.config.inner_dim
    if work.recompute == "none" or index % work.recompute_every:
        return tokens * width * work.computed + saved_bytes(work)
    device = "CPU" if work.code == "cpu" else "Ascend"
    return kept_bytes(
        work.config, work.recompute, batch=work.batch, tokens=work.local_tokens, itemsize=work.computed, device=device
    )


def backward_bytes(work: Training, index: int) -> int:
    """Bytes beside everything kept while block ``index`` goes backward: its recomputed tensors and moving gradients."""
    tokens, width = work.batch * work.local_tokens, work.config.inner_dim
    rows = MOVING + (CPU_MOVING if work.code == "cpu" else ())
    moving = rows_bytes(rows, tokens=tokens, width=width, itemsize=work.computed)
    if work.recompute == "none" or index % work.recompute_every:
        return moving
    again = saved_bytes(work)
    if work.recompute == "keep_attention":  # output and statistics are there already
        again -= tokens * width * work.computed + attention_state(work)
    return again + moving


def forward_bytes(*, tokens: int, width: int, itemsize: int) -> int:
    """Bytes that a block's forward pass needs without gradients."""
    return rows_bytes(FORWARD, tokens=tokens, width=width, itemsize=itemsize)
