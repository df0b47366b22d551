"""Text to embeddings, end to end: our tokenizer and encoder against diffusers' pipeline from the same folder."""

from __future__ import annotations

import json
from dataclasses import replace

import mindspore as ms
import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

from core.presets import PRESETS
from core.text.t5 import T5EncoderModel
from core.text.tokenizer import Tokenizer, train_tiny_tokenizer
from tests.parity.cases_text import reference
from tests.tolerances import MODULE, relative_error

CONFIG = replace(PRESETS["tiny-1.5"].text, num_layers=2, d_kv=10)
PROMPTS = ["A small red circle moves left.", "", "a blue square over a white background, slowly " * 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A diffusers folder whose tokenizer/ is ours; its model_index.json names the reference's classes."""
    path = tmp_path_factory.mktemp("model")
    train_tiny_tokenizer([*PROMPTS[::2], "the green triangle"], path / "tokenizer", vocab_size=CONFIG.vocab_size)
    reference(CONFIG, 5).save_pretrained(path / "text_encoder")
    index = {
        "_class_name": "CogVideoXPipeline",
        "scheduler": [None, None],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": [None, None],
        "vae": [None, None],
    }
    (path / "model_index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("max_length", [226, 24])
def test_prompt_embeddings(folder, max_length):
    missing = {"transformer": None, "vae": None, "scheduler": None}
    pipeline = CogVideoXPipeline.from_pretrained(folder, **missing)
    with torch.no_grad():
        theirs = pipeline._get_t5_prompt_embeds(PROMPTS, max_sequence_length=max_length, device=torch.device("cpu"))
    tokens = Tokenizer(folder / "tokenizer").encode(PROMPTS, max_length=max_length)
    assert len(tokens.warnings) == (max_length == 24)
    model = T5EncoderModel(CONFIG)
    weights = pipeline.text_encoder.state_dict()
    for name in model.table:
        model.assign(name, weights[name].numpy())
    distance = relative_error(model.construct(ms.Tensor(tokens.input_ids)).asnumpy(), theirs.numpy())
    print(f"\nparity prompt to embeddings, length {max_length}: {distance:.2e}")
    assert distance <= MODULE
