"""Properties of rendering and of the digest."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes.digest import digest
from recipes.load import from_dict, load_recipe
from recipes.render import render, scalar
from tests.recipes.helpers import MINIMAL, VALUES, assign, load_text, minimal, recipe_data, write
from tests.recipes.test_pipeline import PIPELINE

relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
_WITHOUT_EFFECT = ("name", "description", "output")


@relaxed
@given(data=recipe_data())
def test_parse_undoes_render(data: dict[str, Any], tmp_path: Path) -> None:
    recipe = from_dict(data)
    loaded = load_text(tmp_path, render(recipe))
    assert loaded.recipe == recipe
    assert render(loaded.recipe) == render(recipe)
    assert from_dict(json.loads(json.dumps(loaded.data))) == recipe


def test_parse_undoes_render_for_a_pipeline(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, PIPELINE)
    again = load_text(tmp_path, render(loaded.recipe))
    assert (again.recipe, again.digest) == (loaded.recipe, loaded.digest)


def shuffled(value: Any, order: random.Random) -> Any:
    """The same value with the keys of every section in another order."""
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


def split(data: dict[str, Any], order: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two trees whose merge is ``data``."""
    parent: dict[str, Any] = {}
    child: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and order.random() < 0.5:
            first, second = split(value, order)
            parent[key], child[key] = first, second
        elif order.random() < 0.5:
            parent[key] = value
        else:
            child[key] = value
            if not isinstance(value, dict):
                parent[key] = "overridden"
    return parent, child


@relaxed
@given(data=recipe_data(), seed=st.integers(0, 2**32))
def test_the_digest_sees_only_effective_values(data: dict[str, Any], seed: int, tmp_path: Path) -> None:
    order = random.Random(seed)
    wanted = load_text(tmp_path, render(from_dict(data))).digest
    assert load_text(tmp_path, render(shuffled(data, order))).digest == wanted
    commented = "# comment\n" + "".join(f"\n{line}   # {seed}\n" for line in render(data).splitlines())
    assert load_text(tmp_path, commented).digest == wanted
    assert load_text(tmp_path, scalar(shuffled(data, order))).digest == wanted
    parent, child = split(data, order)
    write(tmp_path, render(parent), "parent.yaml")
    assert load_text(tmp_path, render({"extends": "parent.yaml", **child})).digest == wanted


@relaxed
@given(first=recipe_data(), second=recipe_data())
def test_digests_differ_exactly_where_effective_values_do(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert (digest(effective(first)) == digest(effective(second))) == (essence(first) == essence(second))


@relaxed
@given(st.data())
def test_the_digest_changes_with_any_one_value(draw: Any) -> None:
    before = draw.draw(recipe_data())
    table = VALUES[before["kind"]]
    key = draw.draw(st.sampled_from(sorted(table)))
    after = json.loads(json.dumps(before))
    assign(after, key, draw.draw(table[key]))
    assert (digest(effective(before)) == digest(effective(after))) == (essence(before) == essence(after))


def effective(data: dict[str, Any]) -> dict[str, Any]:
    """All values, defaults included."""
    return from_dict(data).model_dump(mode="json", by_alias=True)


def essence(data: dict[str, Any]) -> str:
    """The values that identify an experiment, written independently of the digest."""
    values = {key: value for key, value in effective(data).items() if key not in _WITHOUT_EFFECT}
    del values["runtime"]["timeout_s"], values["runtime"]["repeats"]
    return repr(shuffled_sorted(values))


def shuffled_sorted(value: Any) -> Any:
    """The value with sorted keys."""
    return {k: shuffled_sorted(value[k]) for k in sorted(value)} if isinstance(value, dict) else value


def test_labels_and_limits_are_not_in_the_digest(tmp_path: Path) -> None:
    base = load_text(tmp_path, PIPELINE).digest
    same = ["name=y", "description=z", "output.folder=o", "runtime.timeout_s=1", "runtime.repeats=7"]
    for override in [*same, "stages.clips.output.folder=o", "stages.clips.description=d"]:
        assert load_text(tmp_path, PIPELINE, override).digest == base, override
    for override in ["seed=6", "runtime.dtype=fp32", "stages.clips.clips.count=3", "report=true"]:
        assert load_text(tmp_path, PIPELINE, override).digest != base, override


def test_common_or_spelled_in_the_stages_is_the_same_experiment(tmp_path: Path) -> None:
    spelled = PIPELINE.replace("  video: {height: 64, width: 96, frames: 17, max_frames: 33}\n", "")
    spelled = spelled.replace("{max_frames: 17}", "{max_frames: 17, height: 64, width: 96}")
    spelled = spelled.replace("prompts: a cat", "prompts: a cat\n    video: {height: 64, width: 96, frames: 17}")
    assert load_text(tmp_path, spelled).digest == load_text(tmp_path, PIPELINE).digest


def test_how_the_vae_is_shared_counts_unless_it_is_as_it_was_before() -> None:
    """``vae.parallel`` is younger than accepted baselines: its default is not in the digest, other values are."""
    data = {"schema": 1, "kind": "decode-latents", "name": "x", "model": {"path": "m"}, "latents": "l"}
    older = effective(data)
    del older["vae"]["parallel"]
    assert digest(effective(data)) == digest(older)
    assert digest(effective(data | {"vae": {"parallel": "time"}})) != digest(older)


def test_files_kept_in_memory_count_unless_there_are_none() -> None:
    recipe = minimal("train")
    older = effective(recipe)
    del older["data"]["memory_mib"]
    assert digest(effective(recipe)) == digest(older)
    assert digest(effective(recipe | {"data": recipe["data"] | {"memory_mib": 1}})) != digest(older)


def test_the_digest_is_the_same_in_every_version(tmp_path: Path) -> None:
    """Records are compared by digest: if this fails, baselines of earlier versions no longer match."""
    data = {"schema": 1, "kind": "x", "seed": 0, "runtime": {"repeats": 2, "dtype": "fp32"}, "lr": 1e-5, "text": "é"}
    canonical = '{"kind":"x","lr":1e-05,"runtime":{"dtype":"fp32"},"schema":1,"seed":0,"text":"é"}'
    import hashlib

    assert digest(data) == hashlib.sha256(canonical.encode()).hexdigest()


def test_loading_twice_gives_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, PIPELINE)
    assert load_recipe(path) == load_recipe(path)


def test_values_are_rendered_so_that_people_can_read_them() -> None:
    assert scalar("8n+1") == '"8n+1"'
    assert scalar("data/tiny") == "data/tiny"
    assert scalar("@clips") == '"@clips"'
    assert scalar("on") == "on"
    assert scalar("true") == '"true"'
    assert scalar([1e-8, None, True]) == "[1e-08, null, true]"
    assert scalar("a\u0085\ufeff\U0001f600é\n") == '"a\\u0085\\uFEFF\\U0001F600é\\n"'
    assert all(scalar(character)[0] in '"' + string.ascii_letters + "_./" for character in string.printable)


def test_every_kind_is_covered() -> None:
    from recipes.schema import STAGE_KINDS

    assert set(MINIMAL) == set(VALUES) == set(STAGE_KINDS)
