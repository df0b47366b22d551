"""Text to token numbers with transformers' T5 tokenizer, always from a local folder and never over the network."""

from __future__ import annotations

import io
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.files import atomic_path, write_text

PAD, EOS, UNKNOWN = 0, 1, 2
EXTRA_IDS = 100  # <extra_id_99> ... <extra_id_0>, which transformers appends to the sentencepiece vocabulary
_FILES = ("tokenizer.json", "spiece.model")
_POINTER = b"version https://git-lfs"
_SHOWN = 160


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """``input_ids`` int32 ``[B, L]``, ``mask`` uint8 ``[B, L]`` (1 = token, 0 = padding), one warning per cut text."""

    input_ids: np.ndarray
    mask: np.ndarray
    warnings: list[str]


class Tokenizer:
    """T5 tokenizer of a ``tokenizer/`` folder (or a T5 folder that also holds the weights).

    Raises:
        UserError: the folder holds no tokenizer, or one that transformers cannot read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not any((self.folder / name).is_file() for name in _FILES):
            state = "no such folder" if not self.folder.is_dir() else f"neither {' nor '.join(_FILES)}"
            raise UserError(
                f"tokenizer {self.folder}: {state}; need a T5 tokenizer folder (spiece.model, tokenizer_config.json)"
            )
        for name in _FILES:
            path = self.folder / name
            if path.is_file() and _starts_with(path, _POINTER):
                raise UserError(f"tokenizer {path}: a Git LFS pointer, need the file itself; run 'git lfs pull' there")
        self._tokenizer = self._load()

    def _load(self):
        from transformers import T5Tokenizer  # noqa: PLC0415  (seconds to import, and only where text is encoded)

        try:
            return T5Tokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except Exception as error:  # transformers, tokenizers and sentencepiece each raise their own kind
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:_SHOWN]
            raise UserError(
                f"tokenizer {self.folder}: cannot be read ({reason}); need the published files complete"
            ) from error

    def __len__(self) -> int:
        """Number of tokens including the ``<extra_id_..>`` ones; the encoder's ``vocab_size`` must not be smaller."""
        return len(self._tokenizer)

    def encode(self, texts: str | Sequence[str], *, max_length: int = 226) -> Tokens:
        """Texts ``[B]`` -> tokens ``[B, max_length]``: an end mark after each text, then padding.

        A longer text loses its tail but keeps the end mark; ``warnings`` then says what was cut.
        """
        if max_length < 1:
            raise UserError(f"max_length: got {max_length}, need at least 1 (CogVideoX uses 226, 1.5 also 224)")
        texts = [texts] if isinstance(texts, str) else list(texts)
        input_ids = np.full((len(texts), max_length), PAD, np.int32)
        mask = np.zeros((len(texts), max_length), np.uint8)
        warnings = []
        for row, text in enumerate(texts):
            ids = self._tokenizer(text, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
            if len(ids) > max_length:
                lost = self._tokenizer.decode(ids[max_length - 1 : -1])
                shown = lost if len(lost) <= _SHOWN else f"{lost[:_SHOWN]}... ({len(lost)} characters)"
                warnings.append(f"text {row + 1}: {len(ids)} tokens, only {max_length} are used; cut: {shown!r}")
                ids = [*ids[: max_length - 1], ids[-1]]
            input_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        return Tokens(input_ids=input_ids, mask=mask, warnings=warnings)


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def train_tiny_tokenizer(texts: Sequence[str], folder: str | Path, *, vocab_size: int = 512) -> int:
    """Trains a small T5 tokenizer on ``texts`` and writes a folder that transformers and diffusers load.

    Every printable ASCII character gets a piece, so no English prompt becomes ``<unk>``. The result depends only on
    the arguments. Returns the number of tokens, at most ``vocab_size`` (fewer where ``texts`` do not support more).

    Raises:
        UserError: ``vocab_size`` has no room for the characters and the 100 extra tokens, or ``texts`` are empty.
    """
    import sentencepiece  # noqa: PLC0415

    texts = [text.strip() for text in texts if text.strip()]
    required = "".join(c for c in string.printable if not c.isspace())
    needed = len(set("".join(texts)) | set(required)) + EXTRA_IDS + 8
    if not texts or vocab_size < needed:
        got = f"vocab_size {vocab_size}" if texts else "no text"
        raise UserError(f"train_tiny_tokenizer: got {got}, need a text and a vocab_size of at least {needed}")
    # Sentencepiece considers a word only if something varies after it; as a line of its own every word does.
    lines = [*texts, *(word for text in texts for word in text.split())]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="unigram", vocab_size=vocab_size - EXTRA_IDS,
        hard_vocab_limit=False, character_coverage=1.0, required_chars=required, num_threads=1, minloglevel=2,
        pad_id=PAD, eos_id=EOS, unk_id=UNKNOWN, bos_id=-1,
        pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>",
    )  # fmt: skip
    with atomic_path(Path(folder) / "spiece.model") as path:
        path.write_bytes(model.getvalue())
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    extra = [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]
    special_map = {"additional_special_tokens": extra, **special}
    config = {"extra_ids": EXTRA_IDS, "model_max_length": 226, "tokenizer_class": "T5Tokenizer", **special_map}
    write_text(Path(folder) / "special_tokens_map.json", json.dumps(special_map, indent=2) + "\n")
    write_text(Path(folder) / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    return pieces + EXTRA_IDS
