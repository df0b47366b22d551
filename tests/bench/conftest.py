"""Fixtures that several files of this folder use."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from bench.tasks import encode_text, make_model
from bench.tasks import models as models_module
from core.data import shapes
from core.text.tokenizer import Tokenizer, train_tiny_tokenizer


@pytest.fixture
def mindspore_runs(monkeypatch):
    """MindSpore can be started once a process, and runs already."""
    for module in (models_module, make_model):
        monkeypatch.setattr(module, "start_mindspore", lambda runtime, seed: {})


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three rendered clips of 11 frames."""
    folder = tmp_path_factory.mktemp("clips")
    shapes.write_clips(folder, [shapes.draw_clip(0, i) for i in range(3)], frames=11, height=40, width=62, fps=8)
    return folder


class FakeModels:
    """A tokenizer that was trained in the test, and an encoder whose embedding is the token number."""

    def __init__(self, recipe, ctx):
        self.dtype, self._folder = "fp32", recipe.model.path

    def text_encoder(self):
        def encode(ids):
            return ms.Tensor(np.repeat(ids.asnumpy()[..., None], 4, axis=2).astype(np.float32))

        return encode, Tokenizer(self._folder)


@pytest.fixture
def text_recipe(tmp_path, clips, monkeypatch):
    monkeypatch.setattr(encode_text, "Models", FakeModels)
    monkeypatch.setattr("core.weights.parameter_digest", lambda model: "ab12")
    train_tiny_tokenizer(shapes.all_captions(), tmp_path / "tokenizer")
    return {
        "kind": "encode-text",
        "model": {"path": str(tmp_path / "tokenizer")},
        "data": {"csv": str(clips / "video_caption.csv")},
        "text": {"max_length": 24, "batch_size": 2},
    }
