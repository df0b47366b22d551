"""The tokenizer wrapper and the tiny tokenizer trained for tests and the quick start."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import transformers

from core.errors import UserError
from core.text.tokenizer import EXTRA_IDS, Tokenizer, train_tiny_tokenizer

TEXTS = [
    f"a {size} {colour} {shape} moves {way} over a {ground} background"
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square")
    for way, ground in (("left", "black"), ("right", "white"))
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tiny_tokenizer(TEXTS, path)
    return path


def test_end_mark_padding_and_mask(folder):
    tokens = Tokenizer(folder).encode(["a red circle", ""], max_length=8)
    assert tokens.input_ids.shape == tokens.mask.shape == (2, 8)
    assert (tokens.input_ids.dtype, tokens.mask.dtype) == ("int32", "uint8")
    length = int(tokens.mask[0].sum())
    assert tokens.input_ids[0, length - 1] == 1
    assert (tokens.input_ids[0, length:] == 0).all()
    assert tokens.input_ids[1].tolist() == [1, *[0] * 7]
    assert tokens.mask[1].sum() == 1
    assert tokens.warnings == []


def test_one_text_is_a_batch_of_one(folder):
    tokenizer = Tokenizer(folder)
    one, many = tokenizer.encode("a red circle"), tokenizer.encode(["a red circle"])
    assert one.input_ids.shape == (1, 226)
    assert (one.input_ids == many.input_ids).all()


def test_a_long_text_is_cut_and_said_so(folder):
    tokens = Tokenizer(folder).encode(
        ["a red circle", "a small red circle moves left over a black background"], max_length=6
    )
    assert tokens.input_ids[1, -1] == 1
    assert tokens.mask[1].all()
    assert len(tokens.warnings) == 1
    assert tokens.warnings[0].startswith("text 2: ")
    assert "only 6 are used" in tokens.warnings[0]
    assert "background" in tokens.warnings[0]
    assert "small" not in tokens.warnings[0]


def test_exactly_full_is_not_cut(folder):
    tokenizer = Tokenizer(folder)
    length = int(tokenizer.encode(TEXTS[0]).mask.sum())
    assert tokenizer.encode(TEXTS[0], max_length=length).warnings == []
    assert len(tokenizer.encode(TEXTS[0], max_length=length - 1).warnings) == 1


@pytest.mark.parametrize("name", ["T5Tokenizer", "AutoTokenizer"])
def test_transformers_reads_the_folder_and_agrees(folder, name):
    theirs = getattr(transformers, name).from_pretrained(str(folder))
    texts = [*TEXTS[:3], 'Zebra, "42%" {x}', " ".join(TEXTS)]
    expected = theirs(texts, padding="max_length", max_length=30, truncation=True, return_tensors="np")
    ours = Tokenizer(folder).encode(texts, max_length=30)
    assert (ours.input_ids == expected["input_ids"]).all()
    assert (ours.mask == expected["attention_mask"]).all()
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)


def test_sentencepiece_itself_agrees(folder):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    tokens = Tokenizer(folder).encode(TEXTS)
    for row, text in enumerate(TEXTS):
        assert tokens.input_ids[row][tokens.mask[row] > 0].tolist() == [*pieces.encode(text), 1]


def test_either_file_alone_is_enough(folder, tmp_path):
    expected = Tokenizer(folder).encode(TEXTS).input_ids
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
    transformers.T5Tokenizer.from_pretrained(str(folder)).save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b" / "spiece.model").exists()
    for name in "ab":
        assert (Tokenizer(tmp_path / name).encode(TEXTS).input_ids == expected).all()


def test_ascii_is_never_unknown_and_numbers_fit_the_tiny_encoder(folder):
    tokenizer = Tokenizer(folder)
    tokens = tokenizer.encode("".join(chr(c) for c in range(33, 127)), max_length=400)
    assert 2 not in tokens.input_ids
    assert EXTRA_IDS < len(tokenizer) <= 512
    assert tokenizer.encode("<extra_id_0>").input_ids[0, 0] == len(tokenizer) - 1


def test_training_is_deterministic(folder, tmp_path):
    train_tiny_tokenizer(TEXTS, tmp_path)
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        digests = {hashlib.sha256((path / name).read_bytes()).hexdigest() for path in (folder, tmp_path)}
        assert len(digests) == 1, name
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize(("texts", "size"), [(TEXTS, 150), ([], 512), (["  "], 512)])
def test_training_refuses(texts, size, tmp_path):
    with pytest.raises(UserError, match="vocab_size of at least"):
        train_tiny_tokenizer(texts, tmp_path, vocab_size=size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "neither tokenizer.json nor spiece.model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:d6", "Git LFS pointer"),
        (b"\x00not a model", "cannot be read"),
    ],
)
def test_bad_folders_are_refused_in_one_line(content, words, tmp_path):
    if content is not None:
        (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        Tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_missing_folder_and_bad_length(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match="max_length: got 0"):
        Tokenizer(folder).encode("a", max_length=0)


def test_importing_the_module_does_not_import_transformers():
    heavy = "{'transformers', 'sentencepiece', 'mindspore'}"
    code = f"import sys, core.text.tokenizer; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
