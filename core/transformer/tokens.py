"""What a transformer does with its sequence of tokens where several processes share it; here: one has it all.

``core.parallel.ulysses`` has the other implementation, which is handed to the model (``communicate``).

Letters: B batch, V video tokens, L text tokens, N heads, S joint sequence, K head size; a small letter is the part of
a process, with its padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

Recompute = str


def same_heads(q_BNSK, k_BNSK, v_BNSK):
    """Every head is here already."""
    return q_BNSK, k_BNSK, v_BNSK


def same_tokens(out_BNSK):
    """Every token is here already."""
    return out_BNSK


class Tokens(Protocol):
    """One sequence's cut into parts."""

    def text(self, x_BLX: Any) -> Any:
        """``[B, L, ..] -> [B, l, ..]``: this process's text tokens of a tensor or array."""
        ...

    def video(self, x_BVX: Any) -> Any:
        """``[B, V, ..] -> [B, v, ..]``: this process's video tokens of a tensor or array."""
        ...

    def to_heads(self, q_BNSK: Any, k_BNSK: Any, v_BNSK: Any) -> tuple[Any, Any, Any]:
        """All heads of own tokens ``[B, N, s, K]`` -> own heads of all tokens ``[B, n, S, K]``; compiled."""
        ...

    def to_tokens(self, out_BNSK: Any) -> Any:
        """The way back: ``[B, n, S, K] -> [B, N, s, K]``; compiled."""
        ...

    def before_block(self, hidden_BVD: Any, recompute: Recompute) -> Any:
        """``hidden`` itself, on its way into a block that computes again what ``recompute`` says."""
        ...

    def whole(self, output_BVX: Any) -> Any:
        """Own outputs ``[B, v, ..]`` -> those of all video tokens ``[B, V, ..]`` on every process."""
        ...


class Sharing(Protocol):
    """Makes the cut for a sequence's lengths."""

    def tokens(self, *, text: int, video: int, heads: int, head_size: int, batch: int, itemsize: int) -> Tokens:
        """The cut of ``text + video`` tokens."""
        ...


@dataclass(frozen=True)
class WholeTokens:
    """Everything is here."""

    to_heads = staticmethod(same_heads)
    to_tokens = staticmethod(same_tokens)

    def text(self, x_BLX):
        return x_BLX

    def video(self, x_BVX):
        return x_BVX

    def before_block(self, hidden_BVD, recompute):
        return hidden_BVD

    def whole(self, output_BVX):
        return output_BVX


class Whole:
    """One process has every token."""

    def tokens(self, **_lengths: int) -> WholeTokens:
        """The cut that is none."""
        return WholeTokens()
