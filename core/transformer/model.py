"""The CogVideoX transformer: patches and text in, predicted velocity out.

Letters as in ``core.transformer.layers``.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import mindspore as ms
import numpy as np
from mindspore import mint

from core import ops
from core.configs import TransformerConfig
from core.errors import UserError
from core.model import Model
from core.transformer import layers, rope
from core.transformer.feed_forward import ChunkedFeedForward
from core.transformer.parameters import parameter_table
from core.transformer.tokens import Sharing, Tokens, Whole

Recompute = Literal["none", "all", "keep_attention"]
OFS_DEFAULT = 2.0  # the constant that CogVideoX1.5-5B-I2V was trained with


class CogVideoXTransformer3DModel(Model):
    """CogVideoX 1.0 and 1.5, text-to-video and image-to-video, by config alone.

    Args:
        config: sizes.
        dtype: type of the stored parameters.
        compute_dtype: type of the activations; None is the parameters' type.
    """

    def __init__(self, config: TransformerConfig, dtype: ms.Type = ms.float32, compute_dtype: ms.Type | None = None):
        super().__init__(parameter_table(config), dtype, compute_dtype)
        self.config = config
        self._embed_values = ops.compiled(layers.embed_values)
        self._embed_patches = ops.compiled(layers.embed_patches)
        self._block = self._sparing_block = ops.compiled(layers.block)
        self._every, self._mode = 1, "none"
        self._sharing: Sharing = Whole()
        self._chunks: ChunkedFeedForward | None = None
        self._head = ops.compiled(layers.head)

    def special_init(self, name: str) -> np.ndarray:
        """Start value of the learned positions: the sincos table behind zeros for the text."""
        config = self.config
        frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        height, width = config.sample_height // config.patch_size, config.sample_width // config.patch_size
        table = rope.sincos_table(config, frames, height, width)
        text = np.zeros((config.max_text_seq_length, config.inner_dim), np.float32)
        return np.concatenate([text, table])[None]

    def recompute(self, mode: Recompute | bool = "all", every: int = 1) -> None:
        """What the blocks keep for the backward pass (docs/design/009).

        Args:
            mode: ``none`` everything; ``all`` only a block's inputs, the block is computed again; ``keep_attention``
                its inputs and its attention's output, all but attention is computed again. True is ``all``.
            every: blocks 0, every, 2 * every, ... do so, the others keep everything.

        Raises:
            UserError: another mode, or ``every`` below 1.
        """
        if isinstance(mode, bool):
            mode = "all" if mode else "none"
        if mode not in get_args(Recompute):
            raise UserError(f"recompute: got {mode!r}, need one of {', '.join(get_args(Recompute))}")
        if every < 1:
            raise UserError(f"recompute: got every {every}, need 1 (each block) or more")
        self._every, self._mode = every, mode
        if mode == "keep_attention":
            self._sparing_block = ops.recomputed_keeping(layers.block_keeping, layers.block_again)
        else:
            self._sparing_block = ops.recomputed(layers.block) if mode == "all" else self._block

    def enable_forward_chunking(self, chunk_size: int | None) -> None:
        """Feed-forwards go through at most ``chunk_size`` tokens of the batch at a time, in the forward and in the
        backward pass, which makes a piece's hidden layer again: none exists whole (docs/design/019).

        Args:
            chunk_size: tokens, of all samples together; None: all at once. diffusers' method of this name has the
                tokens of a sample for dimension 1.

        Raises:
            UserError: ``chunk_size`` below 1.
        """
        if chunk_size is not None and chunk_size < 1:
            raise UserError(f"chunk_size: got {chunk_size}, need 1 token or more, or None")
        self._chunks = None if chunk_size is None else ChunkedFeedForward(chunk_size)

    def communicate(self, sharing: Sharing) -> None:
        """How processes share a sample's tokens (``core.parallel.ulysses``); without this each sample is here whole."""
        self._sharing = sharing

    def construct(self, hidden_states, encoder_hidden_states, timestep, ofs=None):
        """Predicts the velocity.

        Args:
            hidden_states: noisy latents ``[B, F, C, H, W]``; F a multiple of ``patch_size_t``, H, W of ``patch_size``.
            encoder_hidden_states: text embeddings ``[B, L, text_embed_dim]``.
            timestep: ``[B]``.
            ofs: ``[B]`` or ``[1]``, only for configs with ``ofs_embed_dim`` (1.5 I2V); None is 2.0.

        Returns:
            ``[B, F, out_channels, H, W]``.

        Raises:
            UserError: shapes that the config cannot take.
        """
        config = self.config
        self._check(hidden_states.shape, encoder_hidden_states.shape)
        patch, patch_t = config.patch_size, config.patch_size_t or 1
        _, frames, _, height, width = hidden_states.shape
        grid = (frames // patch_t, height // patch, width // patch)

        temb = self._time_embedding(timestep, ofs)
        patches = layers.patchify(hidden_states.astype(self.compute_dtype), patch, patch_t)
        text = encoder_hidden_states.astype(self.compute_dtype)
        tokens = self._sharing.tokens(
            text=text.shape[1], video=patches.shape[1], heads=config.num_attention_heads,
            head_size=config.attention_head_dim, batch=text.shape[0], itemsize=text.itemsize,
        )  # fmt: skip
        cos, sin = self._rotary(text.shape[1], grid, tokens)
        # Each token is embedded by itself: the cut comes before, so that no process embeds another's.
        hidden, encoder = self._embed_patches(self.block("patch_embed"), tokens.video(patches), tokens.text(text))
        hidden, encoder = self._add_positions(hidden, encoder, grid, (frames, text.shape[1]), tokens)
        # All of them, always: a compiled function does not find its defaults.
        parts: dict[str, Any] = {
            "to_heads": tokens.to_heads, "to_tokens": tokens.to_tokens, "feed_forward": layers.feed_forward,
        }  # fmt: skip
        for index in range(config.num_layers):
            handed = self.block(f"transformer_blocks.{index}")
            if self._chunks is not None:
                parts["feed_forward"] = self._chunks.of(handed)
            sparing = index % self._every == 0
            hidden = tokens.before_block(hidden, self._mode if sparing else "none")
            hidden, encoder = (self._sparing_block if sparing else self._block)(
                handed, hidden, encoder, temb, cos, sin,
                num_heads=config.num_attention_heads, eps=config.norm_eps, **parts,
            )  # fmt: skip
        tail = self.block("norm_final", "norm_out", "proj_out", keep_prefix=True)
        output = tokens.whole(self._head(tail, hidden, temb, eps=config.norm_eps))
        return layers.unpatchify(output, grid, config.out_channels, patch, patch_t)

    def _time_embedding(self, timestep, ofs):
        config = self.config
        kind = {"flip_sin_to_cos": config.flip_sin_to_cos, "freq_shift": config.freq_shift}
        values = layers.sinusoid(timestep, config.inner_dim, **kind).astype(self.compute_dtype)
        temb = self._embed_values(self.block("time_embedding"), values)
        if config.ofs_embed_dim:
            ofs = ms.Tensor([OFS_DEFAULT], ms.float32) if ofs is None else ofs
            values = layers.sinusoid(ofs, config.ofs_embed_dim, **kind).astype(self.compute_dtype)
            temb = temb + self._embed_values(self.block("ofs_embedding"), values)
        return temb

    def _add_positions(self, hidden, encoder, grid, lengths, tokens: Tokens):
        """Sincos positions (2B) or learned ones (5B I2V at its own size); the reference's rule for other sizes."""
        config = self.config
        if config.use_rotary_positional_embeddings and not config.use_learned_positional_embeddings:
            return hidden, encoder
        frames, text_length = lengths
        trained_frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        if config.use_learned_positional_embeddings and frames == trained_frames:
            table = self.block("patch_embed").whole()["pos_embedding"].astype(hidden.dtype)
            return hidden + tokens.video(table[:, text_length:]), encoder + tokens.text(table[:, :text_length])
        table = ms.Tensor(rope.sincos_table(config, *grid)[None]).astype(hidden.dtype)
        return hidden + tokens.video(table), encoder

    def _rotary(self, text_length, grid, tokens: Tokens):
        """Tables of this process's tokens, which are turned before they are exchanged: less to read."""
        if not self.config.use_rotary_positional_embeddings:
            return None, None
        tables = (ms.Tensor(table[None]) for table in rope.joint_rotary_table(self.config, text_length, *grid))
        own = [(tokens.text(t[:, :text_length]), tokens.video(t[:, text_length:])) for t in tables]
        cos, sin = (mint.cat(parts, dim=1)[0] for parts in own)
        return cos, sin

    def _check(self, video, text) -> None:
        config = self.config
        if len(video) != 5 or video[2] != config.in_channels:
            raise UserError(f"hidden_states: got shape {tuple(video)}, need [B, F, {config.in_channels}, H, W]")
        if len(text) != 3 or text[2] != config.text_embed_dim:
            raise UserError(f"encoder_hidden_states: got shape {tuple(text)}, need [B, L, {config.text_embed_dim}]")
        patch_t = config.patch_size_t or 1
        if video[1] % patch_t:
            raise UserError(
                f"hidden_states: got {video[1]} latent frames, need a multiple of patch_size_t {patch_t}: "
                "pad with core.sample.pad_frames, or choose 16N+1 pixel frames less 8 (e.g. 77 or 85)"
            )
        if video[3] % config.patch_size or video[4] % config.patch_size:
            raise UserError(f"hidden_states: got {video[3]}x{video[4]} latents, need multiples of {config.patch_size}")
        if config.use_learned_positional_embeddings:
            need = (config.sample_height, config.sample_width, config.max_text_seq_length)
            if (video[3], video[4], text[1]) != need:
                raise UserError(
                    f"learned positions: got {video[3]}x{video[4]} latents and {text[1]} text tokens, "
                    f"need {need[0]}x{need[1]} and {need[2]}: this checkpoint works at its trained size only"
                )
