"""The strict YAML: what values are, and what a file may not contain, with the exact place."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.render import scalar
from recipes.yaml_source import MAX_BYTES, from_python, parse, plain, resolve
from recipes.yaml_source import Position as At
from tests.recipes.helpers import places, problems_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E3", 1000.0),
        ("+.5", 0.5),
        ("2.", 2.0),
        ("-7", -7),
        ("007", 7),
        ("0x1f", 31),
        ("0o17", 15),
        ("on", "on"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2026-11-22", "2026-11-22"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("nULL", "nULL"),
        ("-.inf", -math.inf),
        ("8n+1", "8n+1"),
        ("1e", "1e"),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    got = resolve(text)
    assert (got, type(got)) == (value, type(value))
    node, problems = parse(f"a: {text}", "f")
    assert node is not None
    assert (plain(node), problems) == ({"a": value}, [])


def test_quoted_scalars_are_text() -> None:
    node, problems = parse("a: '1'\nb: \"true\"\nc: |\n  1\n", "f")
    assert node is not None
    assert (plain(node), problems) == ({"a": "1", "b": "true", "c": "1\n"}, [])


def test_nodes_know_their_places() -> None:
    node, _ = parse("a:\n  b: [1,\n    x]\n", "f")
    assert node is not None
    b = node.value["a"].value["b"]
    assert (b.at, b.key_at, b.path) == (At("f", 2, 6), At("f", 2, 3), "a.b")
    assert (b.value[1].at, b.value[1].path) == (At("f", 3, 5), "a.b.1")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=12,
)


@given(json_values)
def test_every_value_survives_the_flow_form(value: object) -> None:
    node, problems = parse(f"a: {scalar(value)}\n", "f")
    if _has_merge_key(value):
        assert problems
        return
    assert problems == []
    assert node is not None
    assert repr(plain(node)) == repr({"a": value})


def _has_merge_key(value: object) -> bool:
    if isinstance(value, dict):
        return "<<" in value or any(map(_has_merge_key, value.values()))
    return isinstance(value, list) and any(map(_has_merge_key, value))


@given(json_values)
def test_plain_undoes_from_python(value: object) -> None:
    assert plain(from_python(value, At("x"))) == value


WHOLE_FILE = {
    "empty": (b"", 1, 1, "empty file"),
    "only a comment": (b"# nothing\n", 1, 1, "empty file"),
    "null": (b"\n~\n", 2, 1, "got null, need a mapping"),
    "text": (b"just text\n", 1, 1, "got 'just text', need a mapping"),
    "a list": (b"- a\n- b\n", 1, 1, "got a list, need a mapping"),
    "binary": (b"\x89PNG\r\n\x1a\n\0\0", 1, 1, "binary file"),
    "utf-16": ("schema: 1".encode("utf-16"), 1, 1, "binary file"),
    "latin-1": ("schema: 1\nname: caf\xe9\n".encode("latin-1"), 2, 10, "0xe9, which is not UTF-8"),
    "control character": (b"schema: 1\nname: a\x01b\n", 2, 8, "U+0001"),
    "deep flow": (b"a: " + b"[" * 5000, 1, 35, "more than 32 levels"),
    "deep mapping": (b"".join(b" " * i + b"a:\n" for i in range(100)), 32, 32, "more than 32 levels"),
    "tab": (b"runtime:\n\tdtype: fp32\n", 2, 1, "got a tab, need spaces"),
    "open quote": (b"name: 'x\n", 2, 1, "quoted scalar"),
    "open list": (b"name: [1, 2\n", 2, 1, "flow sequence"),
    "two colons": (b"name: a: b\n", 1, 8, "got a ':'"),
    "at sign": (b"name: @x\n", 1, 7, "'@'"),
    "too large": (b"#" * (MAX_BYTES + 1), 1, 1, "at most 200000 bytes"),
}


@pytest.mark.parametrize("case", WHOLE_FILE)
def test_a_file_that_is_no_recipe_has_one_clear_error(case: str, tmp_path: Path) -> None:
    content, line, column, words = WHOLE_FILE[case]
    (problem,) = problems_of(tmp_path, content)
    assert (problem.line, problem.column) == (line, column)
    assert words in problem.message
    assert "\n" not in str(problem)
    assert str(problem).startswith(f"{tmp_path / 'r.yaml'}:{line}:{column}: ")


def test_a_missing_file_and_a_folder_have_one_clear_error(tmp_path: Path) -> None:
    from recipes.load import load_recipe
    from recipes.problems import RecipeErrors

    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(RecipeErrors, match="can't be read"):
            load_recipe(path)


REFUSED = {
    "duplicate": ("a: 1\nb: 2\na: 3\n", (3, 1, "a"), "first given in line 1"),
    "duplicate below": ("a:\n  b: 1\n  b: 2\n", (3, 3, "a.b"), "duplicate"),
    "anchor": ("a: &x 1\n", (1, 4, "a"), "anchor &x"),
    "alias": ("a: &x 1\nb: *x\n", (2, 4, "b"), "alias *x"),
    "merge": ("a: {<<: {b: 1}}\n", (1, 5, "a"), "merge key"),
    "tag": ("a: !!python/object:os.system x\n", (1, 4, "a"), "tags are not allowed"),
    "core tag": ("a: !!str 1\n", (1, 4, "a"), "tags are not allowed"),
    "number as key": ("a:\n  1: x\n", (2, 3, "a"), "not text"),
    "list as key": ("? [a]\n: 1\n", (1, 3, ""), "not text"),
    "second document": ("a: 1\n---\nb: 1\n", (2, 1, ""), "second YAML document"),
    "yaml 1.1": ("%YAML 1.1\n---\na: 1\n", (2, 1, ""), "need YAML 1.2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parts_of_yaml_that_surprise_are_refused(case: str) -> None:
    text, place, words = REFUSED[case]
    _, problems = parse(text, "f")
    found = [problem for problem in problems if words in problem.message]
    assert places(found) == [place]


def test_reading_goes_on_after_what_can_be_stepped_over(tmp_path: Path) -> None:
    text = "schema: 1\nkind: make-model\nname: x\nname: y\nmodel: {preset: &p tiny-1.5, seed: 1}\nseed: *p\n"
    found = problems_of(tmp_path, text)
    assert places(found) == [(4, 1, "name"), (5, 17, "model.preset"), (5, 30, "model.seed"), (6, 7, "seed")]
