"""Sequence parallelism around the unchanged model: tokens are cut, heads are exchanged for attention (Ulysses).

DeepSpeed-Ulysses, arXiv:2309.14509. Between the blocks' attentions each process works on its part of the text and of
the video tokens; around each attention two all-to-alls give it all tokens of its share of the heads and take them
back. Queries, keys and values travel in one, normalised and turned before: the rotary tables are then those of the
own tokens only.

Lengths that do not divide are padded at the end of the text and of the video. Padded tokens are taken out of the
exchanged sequence, so attention never sees one; everything else works on each token by itself, and the gathered
output has none, so their gradient is zero: the result is that of one process.

Parameters get the gradient of the own tokens: its sum over the group is the gradient.

Letters: n processes, B batch, N heads, M = N / n, K head size, L text and V video tokens, l and v those of a process
with padding, s = l + v, S = L + V.
"""

from __future__ import annotations

from typing import Any

from mindspore import mint, nn
from mindspore import ops as _ops

from core.errors import UserError
from core.parallel.collectives import Group
from core.parallel.mesh import share
from core.parallel.traffic import Message

PURPOSE = "sequence"


def _parts(x_BTX: Any, parts: int, index: int) -> Any:
    """Part ``index`` of the tokens of ``x``, zeros at the end where it is short."""
    length = share(x_BTX.shape[1], parts)
    own = x_BTX[:, index * length : (index + 1) * length]
    missing = length - own.shape[1]
    if not missing:
        return own
    zeros = mint.zeros((x_BTX.shape[0], missing, *x_BTX.shape[2:]), dtype=x_BTX.dtype)
    return zeros if missing == length else mint.cat((own, zeros), dim=1)


def _longer(x_BMTK: Any, length: int) -> Any:
    """Zeros behind the tokens up to ``length``."""
    batch, heads, have, size = x_BMTK.shape
    if have == length:
        return x_BMTK
    return _ops.concat((x_BMTK, _ops.zeros((batch, heads, length - have, size), x_BMTK.dtype)), 2)


def exchange_functions(group: Group, text: int, video: int) -> tuple[Any, Any]:
    """``to_heads`` and ``to_tokens`` of ``core.transformer.tokens`` for a joint sequence; for compiled functions."""
    all_to_all, n = group.cells["all_to_all"], group.size
    part_l, part_v = share(text, n), share(video, n)
    length = part_l + part_v
    padded = n * length != text + video

    def without_padding(x_BMSK):
        batch, heads, _, size = x_BMSK.shape
        x = x_BMSK.reshape(batch, heads, n, length, size)
        own_text = x[:, :, :, :part_l].reshape(batch, heads, n * part_l, size)[:, :, :text]
        own_video = x[:, :, :, part_l:].reshape(batch, heads, n * part_v, size)[:, :, :video]
        return _ops.concat((own_text, own_video), 2)

    def with_padding(x_BMSK):
        batch, heads, _, size = x_BMSK.shape
        own_text = _longer(x_BMSK[:, :, :text], n * part_l).reshape(batch, heads, n, part_l, size)
        own_video = _longer(x_BMSK[:, :, text:], n * part_v).reshape(batch, heads, n, part_v, size)
        return _ops.concat((own_text, own_video), 3).reshape(batch, heads, n * length, size)

    def to_heads(q_BNsK, k_BNsK, v_BNsK):
        batch, heads, _, size = q_BNsK.shape
        x = _ops.concat((q_BNsK, k_BNsK, v_BNsK), 0)
        x = x.reshape(3 * batch, n, heads // n, length, size).transpose(1, 0, 2, 3, 4)
        x = all_to_all(x).transpose(1, 2, 0, 3, 4).reshape(3 * batch, heads // n, n * length, size)
        if padded:
            x = without_padding(x)
        return x[:batch], x[batch : 2 * batch], x[2 * batch :]

    def to_tokens(out_BMSK):
        batch, heads, _, size = out_BMSK.shape
        x = with_padding(out_BMSK) if padded else out_BMSK
        x = x.reshape(batch, heads, n, length, size).transpose(2, 0, 1, 3, 4)
        return all_to_all(x).transpose(1, 0, 2, 3, 4).reshape(batch, n * heads, length, size)

    return to_heads, to_tokens


class _Mark(nn.Cell):
    """The identity; counts what the block behind it exchanges, in the forward pass and in the backward pass.

    The block is compiled, so nothing in it can count.
    """

    def __init__(self, group: Group, forward: tuple[Message, ...], backward: tuple[Message, ...]):
        super().__init__()
        self._group, self._messages = group, (forward, backward)

    def _add(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            self._group.traffic.add(message)

    def construct(self, x):
        self._add(self._messages[0])
        return x.view(x.shape)

    def bprop(self, x, out, grad):
        self._add(self._messages[1])
        return (grad,)


class UlyssesTokens:
    """One sequence cut over a group; see ``core.transformer.tokens.Tokens``."""

    def __init__(self, group: Group, functions: tuple[Any, Any], video: int, messages: tuple[Message, ...]):
        self._group, self._video = group, video
        self.to_heads, self.to_tokens = functions
        # Computing a block again repeats its exchanges, also where attention itself was kept.
        self._marks = {
            mode: _Mark(group, messages, messages * times)
            for mode, times in (("none", 1), ("all", 2), ("keep_attention", 2))
        }

    def text(self, x_BLX):
        return _parts(x_BLX, self._group.size, self._group.index)

    def video(self, x_BVX):
        return self.text(x_BVX)

    def before_block(self, hidden_BVD, recompute):
        return self._marks[recompute](hidden_BVD)

    def whole(self, output_BVX):
        """Every process computes the same from the result, so the gradient is the own part: nothing is sent back."""
        batch, length, size = output_BVX.shape
        self._group.note(PURPOSE, "all_gather", output_BVX)
        gathered = self._group.cells["all_gather_same"](output_BVX)
        gathered = gathered.reshape(self._group.size, batch, length, size).transpose(1, 0, 2, 3)
        return gathered.reshape(batch, -1, size)[:, : self._video]


class Ulysses:
    """The processes of ``group`` share every sample; a group of one is the model as it is."""

    def __init__(self, group: Group):
        self._group = group
        # One pair a pair of lengths: a compiled block knows them by identity.
        self._functions: dict[tuple[int, int], tuple[Any, Any]] = {}

    def tokens(self, *, text: int, video: int, heads: int, head_size: int, batch: int, itemsize: int) -> UlyssesTokens:
        """The cut of ``text + video`` tokens.

        Raises:
            UserError: the heads can't be dealt out equally.
        """
        group = self._group
        if heads % group.size:
            raise UserError(
                f"parallel.sequence_parallel: got {group.size}, need a divisor of the model's {heads} attention heads"
            )
        if (text, video) not in self._functions:
            self._functions[text, video] = exchange_functions(group, text, video)
        length = share(text, group.size) + share(video, group.size)
        one = batch * heads * length * head_size * itemsize
        messages = tuple(group.message(PURPOSE, "all_to_all", size) for size in (3 * one, one))
        return UlyssesTokens(group, self._functions[text, video], video, messages)
