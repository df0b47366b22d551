"""Configs: strict reading, values that are refused, presets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.configs import SchedulerConfig, T5Config, TransformerConfig, VAEConfig
from core.errors import UserError
from core.presets import PRESETS

BASE = PRESETS["1.5-5b"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_json(name):
    preset = PRESETS[name]
    for config in (preset.transformer, preset.vae, preset.text, preset.scheduler):
        assert type(config).from_dict(config.to_dict(), "file") == config


def test_fields_that_older_published_files_lack_take_their_value():
    values = PRESETS["2b"].transformer.to_dict()
    for field in ("patch_size_t", "ofs_embed_dim", "patch_bias", "use_learned_positional_embeddings"):
        del values[field]
    assert TransformerConfig.from_dict(values, "file") == PRESETS["2b"].transformer


def test_unknown_and_missing_fields_are_named_together():
    values = {**BASE.transformer.to_dict(), "num_layer": 3, "_class_name": "x"}
    del values["num_layers"]
    with pytest.raises(UserError) as error:
        TransformerConfig.from_dict(values, "a/config.json")
    assert str(error.value) == (
        "a/config.json: unknown field 'num_layer' (did you mean 'num_layers'?); missing field 'num_layers'"
    )


@pytest.mark.parametrize(
    ("config", "changed", "words"),
    [
        (BASE.transformer, {"num_layers": "42"}, "num_layers: got '42', need int"),
        (BASE.transformer, {"num_layers": True}, "num_layers: got True, need int"),
        (BASE.transformer, {"num_layers": 0}, "got num_layers 0, need a positive number"),
        (BASE.transformer, {"activation_fn": "gelu"}, "got activation_fn 'gelu', need 'gelu-approximate'"),
        (BASE.transformer, {"dropout": 0.1}, "got dropout 0.1, need 0.0"),
        (BASE.transformer, {"attention_head_dim": 20}, "got attention_head_dim 20, need a multiple of 8"),
        (BASE.transformer, {"ofs_embed_dim": 7}, "got ofs_embed_dim 7 with time_embed_dim 512"),
        (
            PRESETS["2b"].transformer,
            {"use_learned_positional_embeddings": True},
            "got use_learned_positional_embeddings without",
        ),
        (BASE.vae, {"norm_num_groups": 48}, "need multiples of norm_num_groups 48"),
        (BASE.vae, {"down_block_types": ("A",) * 4}, "got down_block_types"),
        (BASE.vae, {"temporal_compression_ratio": 3}, "got temporal_compression_ratio 3"),
        (BASE.text, {"feed_forward_proj": "gated-silu"}, "got feed_forward_proj 'gated-silu'"),
        (BASE.scheduler, {"prediction_type": "flow"}, "got prediction_type 'flow', need one of epsilon, sample"),
    ],
)
def test_a_value_that_is_not_computed_is_refused(config, changed, words):
    with pytest.raises(UserError, match="got") as error:
        replace(config, **changed)
    assert words in str(error.value)
    with pytest.raises(UserError, match=r"some/config\.json: "):
        type(config).from_dict({**config.to_dict(), **changed}, "some/config.json")


def test_invented_sizes_say_so():
    assert not PRESETS["1.5-2b"].published
    assert "no published weights" in PRESETS["1.5-2b"].note
    assert all("no published weights" in p.note for p in PRESETS.values() if not p.published)


def test_the_classes_are_all_covered():
    assert {type(c) for c in (BASE.transformer, BASE.vae, BASE.text, BASE.scheduler)} == {
        TransformerConfig, VAEConfig, T5Config, SchedulerConfig
    }  # fmt: skip


def test_the_vae_s_ratio_is_written_as_the_whole_number_that_diffusers_slices_with():
    written = BASE.vae.to_dict()["temporal_compression_ratio"]
    assert (written, type(written)) == (4, int)
    assert type(BASE.vae).from_dict(BASE.vae.to_dict() | {"temporal_compression_ratio": 4.0}, "old file") == BASE.vae
