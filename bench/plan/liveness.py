"""What one transformer block keeps and needs, tensor by tensor, read off the code that runs it.

With feed-forwards in pieces (``train.feed_forward_chunk``, ours) the hidden layer is not saved and what moves is a
piece's, or what attention's gradient hands on where that is more.

A row is (what, width in D, bytes or None for the activations' type). "Saved" are the tensors that the block's own
gradient reads (docs/design/016 has the reasons); "moving" is what the largest operator of the backward pass holds
beside them: the gradients of the feed-forward's hidden layer after and before GELU (4 D each) and of the residual
stream (D).
"""

from __future__ import annotations

from bench.plan.workload import Training
from core.transformer.kept import kept_bytes, pieces
from core.transformer.parameters import FEED_FORWARD_FACTOR as FF

Rows = tuple[tuple[str, float, int | None], ...]

HIDDEN: Rows = (
    ("feed-forward hidden before GELU", FF, None),
    ("feed-forward hidden after GELU", FF, None),
)
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
    *HIDDEN,
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
    *HIDDEN,
    ("feed-forward output, for the gate's gradient", 1, None),
)
# The largest operator of the backward pass, beside what is saved.
OF_HIDDEN: Rows = (
    ("gradient after GELU", FF, None),
    ("gradient before GELU", FF, None),
)
RESIDUAL: Rows = (("gradient of the residual stream", 1, None),)
# With pieces, of all tokens: first what a feed-forward hands on, then attention.
OF_PIECES: Rows = (("gradient of the feed-forward's input, its pieces and joined", 2, None),)
OF_ATTENTION: Rows = (("gradients of attention's output, q, k and v", 4, None),)
# On the CPU besides, in units of D: what the inner gradient of a block keeps until it ends, copies where heads are cut
# and merged, and holes of the pool. Not read off the code: the one number of one measured case, "61 frames"
# (docs/design/016), which the other cases test.
CPU_MOVING: Rows = (("inner gradient and the pool", 24, None),)
# Inference: what is alive while the feed-forward runs, beside its hidden layer.
FORWARD: Rows = (
    ("residual stream", 1, None),
    ("joined input of the feed-forward", 1, None),
)
JOINED: Rows = (("outputs of a feed-forward's pieces, and joined", 2, None),)
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
    if work.in_pieces:
        rows = tuple(row for row in rows if row not in HIDDEN)
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


def moving_bytes(work: Training) -> int:
    """Bytes that the gradient of one block holds beside what is saved."""
    tokens, width, item = work.batch * work.local_tokens, work.config.inner_dim, work.computed
    always = RESIDUAL + (CPU_MOVING if work.code == "cpu" else ())
    if not work.in_pieces:
        return rows_bytes(OF_HIDDEN + always, tokens=tokens, width=width, itemsize=item)
    assert work.feed_forward_chunk is not None
    longest = -(-tokens // pieces(tokens, work.feed_forward_chunk))
    piece = rows_bytes(HIDDEN + OF_HIDDEN, tokens=longest, width=width, itemsize=item)
    piece += rows_bytes(OF_PIECES, tokens=tokens, width=width, itemsize=item)
    if work.lora is None:  # a piece's product beside the sums of both weights, which are in fp32, and a new sum
        weight = FF * width * width
        piece += weight * (item + 4) + 2 * weight * (4 - work.trained_itemsize)
    attention = rows_bytes(OF_ATTENTION, tokens=tokens, width=width, itemsize=item)
    return max(piece, attention) + rows_bytes(always, tokens=tokens, width=width, itemsize=item)


def backward_bytes(work: Training, index: int) -> int:
    """Bytes beside everything kept while block ``index`` goes backward: its recomputed tensors and moving gradients."""
    tokens, width = work.batch * work.local_tokens, work.config.inner_dim
    moving = moving_bytes(work)
    if work.recompute == "none" or index % work.recompute_every:
        return moving
    again = saved_bytes(work)
    if work.recompute == "keep_attention":  # output and statistics are there already
        again -= tokens * width * work.computed + attention_state(work)
    return again + moving


def forward_bytes(*, tokens: int, width: int, itemsize: int, chunk: int | None = None) -> int:
    """Bytes that a block's forward pass needs without gradients; ``chunk``: tokens of a piece of its feed-forward."""
    if chunk is None or tokens <= chunk:
        return rows_bytes(FORWARD + HIDDEN, tokens=tokens, width=width, itemsize=itemsize)
    longest = -(-tokens // pieces(tokens, chunk))
    hidden = rows_bytes(HIDDEN, tokens=longest, width=width, itemsize=itemsize)
    return hidden + rows_bytes(FORWARD + JOINED, tokens=tokens, width=width, itemsize=itemsize)
