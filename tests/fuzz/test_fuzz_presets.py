"""Any YAML, and any change of a preset that works: it loads, or one ConfigError says why not, soon and cheaply."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import PRESET_FOLDER, ConfigError, Preset, load_preset, preset_names
from configs.serve import ServeArgs
from tests.fuzz.budget import budgeted

PRESETS = {name: yaml.safe_load((PRESET_FOLDER / f"{name}.yaml").read_text()) for name in preset_names()}
EXTREME = [
    0,
    -1,
    1,
    10**9,
    10**30,
    -(10**400),
    1e308,
    float("nan"),
    float("inf"),
    "",
    "../" * 30 + "etc/passwd",
    "\0",
    [],
    {},
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=8),
    st.sampled_from(EXTREME),
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.integers() | st.none(), inner, max_size=4)
    ),
    max_leaves=12,
)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of dictionaries and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for key, value in items for place in places(value, (*at, key)))]


@st.composite
def changed_presets(draw: st.DrawFn) -> Any:
    """A preset of ours with some of its values replaced, or left out."""
    tree = copy.deepcopy(PRESETS[draw(st.sampled_from(sorted(PRESETS)))])
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from([place for place in places(tree) if place]))
        node = tree
        for key in parents:
            node = node[key]
        if draw(st.booleans()):
            node[last] = draw(scalars | trees)
        else:
            del node[last]
    return tree


def loaded(folder: Path, text: str | bytes) -> Preset | None:
    """The preset in a file of that content, or None where it is refused as it should be."""
    path = folder / "own.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        preset = load_preset(path)
    except ConfigError as error:
        assert 0 < len(str(error)) < 2000
        return None
    return preset


@budgeted()
@given(text=st.text() | trees.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)))
def test_any_yaml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    loaded(tmp_path_factory.getbasetemp(), text)


@budgeted()
@given(data=st.binary(max_size=64))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    loaded(tmp_path_factory.getbasetemp(), data)


@budgeted(50)
@given(tree=changed_presets())
def test_a_changed_preset(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    loaded(tmp_path_factory.getbasetemp(), yaml.safe_dump(tree, allow_unicode=True))


@budgeted()
@given(tree=trees | st.dictionaries(st.sampled_from(sorted(ServeArgs.model_fields)), trees, max_size=4))
def test_any_arguments(tree: Any) -> None:
    """Serve calls the schema itself, and tells a ValidationError, which is a ValueError."""
    try:
        ServeArgs.model_validate(tree)
    except ValueError as error:
        assert str(error)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (BOMB, "aliases"),
        ("name: &a [*a]", "aliases"),
        (f"a: &a [1]\nb: [{'*a,' * 101}]", "aliases"),
        ("[" * 5000, "nested"),
        ("{a: " * 5000, "nested"),
        ("a: 2026-13-45", "not YAML"),
        ("a: " + "9" * 5000, "not YAML"),
        ("? [a]\n: b", "not YAML"),
        (b"\xff\xfe\xfa", "not YAML"),
        (b"a: \x00", "not YAML"),
        ("x" * (2 << 20), "bytes"),
        ("1: 2", ""),
        ("", ""),
    ],
    ids=lambda value: str(value)[:12].encode("unicode_escape").decode(),
)
def test_texts_that_broke_a_loader(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as told:
        load_preset(path)
    assert complaint in str(told.value)
    assert len(str(told.value)) < 2000


@pytest.mark.parametrize("name", ["", "../tiny", "tiny/../tiny", "\0", "x" * 5000, "/etc/passwd", ".yaml", "a\0.yaml"])
def test_names_that_are_no_preset(name: str) -> None:
    with pytest.raises(ConfigError):
        load_preset(name)
