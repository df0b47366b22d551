"""Both published folder layouts are found."""

from __future__ import annotations

import pytest

from core.errors import UserError
from core.layout import find_folders


def _touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def test_one_diffusers_folder(tmp_path):
    for name in ("transformer", "vae", "text_encoder"):
        _touch(tmp_path / name / "config.json")
    _touch(tmp_path / "tokenizer" / "spiece.model", tmp_path / "scheduler" / "scheduler_config.json")
    found = find_folders(tmp_path)
    for name in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert found.need(name) == tmp_path / name


@pytest.mark.parametrize("names", [("transformer", "vae"), ("Transformer", "VAE")])
@pytest.mark.parametrize("inner", [True, False])
def test_the_originals_layout(tmp_path, names, inner):
    model, t5 = tmp_path / "CogVideoX-1.5-5b", tmp_path / "t5-v1_1-xxl"
    _touch(*(model / name / "config.json" for name in names), t5 / "config.json", t5 / "spiece.model")
    found = find_folders(model if inner else tmp_path)
    assert (found.need("transformer"), found.need("vae")) == (model / names[0], model / names[1])
    assert (found.need("text_encoder"), found.need("tokenizer"), found.scheduler) == (t5, t5, None)


def test_t5_as_the_readme_tells_to_download_it(tmp_path):
    model, t5 = tmp_path / "CogVideoX-1.5-5b", tmp_path / "t5-v1_1-xxl"
    _touch(
        model / "transformer" / "config.json", t5 / "text_encoder" / "config.json", t5 / "tokenizer" / "spiece.model"
    )
    found = find_folders(model)
    assert (found.need("text_encoder"), found.need("tokenizer")) == (t5 / "text_encoder", t5 / "tokenizer")


def test_an_override_wins(tmp_path):
    _touch(tmp_path / "m" / "transformer" / "config.json", tmp_path / "other" / "config.json")
    assert find_folders(tmp_path / "m", transformer=tmp_path / "other").transformer == tmp_path / "other"
    with pytest.raises(UserError, match=r"model\.vae: folder .*none not found"):
        find_folders(tmp_path / "m", vae=tmp_path / "none")


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match=r"model: no vae folder found; set model.vae"):
        find_folders(tmp_path).need("vae")
    with pytest.raises(UserError, match=r"model.path: folder .*none not found"):
        find_folders(tmp_path / "none")
    _touch(tmp_path / "t5-v1_1-xxl" / "config.json")
    for name in ("a", "b"):
        _touch(tmp_path / name / "transformer" / "config.json")
    with pytest.raises(UserError, match="got 2 models"):
        find_folders(tmp_path)
