"""The documents are true to the tree: commands, settings, metrics, files and functions that they name are there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from configs import schema, serve
from serve_app.cli import parser
from tests.pages import PAGES, README, ROOT, TOLD_TO_TYPE, blocks, shell_lines, without_blocks

ARCHITECTURE, CONFIGURATION = ROOT / "docs" / "architecture.md", ROOT / "docs" / "configuration.md"
OPERATIONS, CONTRIBUTING = ROOT / "docs" / "operations.md", ROOT / "CONTRIBUTING.md"
ROOMS = "serve_app|stages|webrtc|configs|training|benchmarks|tests|docs|cluster|samples"
SECTIONS: dict[str, type[BaseModel]] = {
    "args": serve.ServeArgs,
    "encoder, diffusion, vocoder": serve.StageArgs,
    "limits": serve.Limits,
    "rtc": serve.RtcArgs,
    "ice_servers": serve.IceServerArgs,
    "access": serve.AccessArgs,
    "Presets": schema.Preset,
    "live": schema.LiveSettings,
    "lowest, constant": schema.CallMode,
    "file": schema.FileSettings,
    "hub": schema.HubFile,
    "model": schema.ModelSizes,
    "mel": schema.MelSettings,
    "whisper": schema.WhisperSizes,
    "campplus": schema.CampplusSizes,
    "regulator": schema.RegulatorSizes,
    "dit": schema.DitSizes,
    "wavenet": schema.WavenetSizes,
    "bigvgan": schema.BigvganSizes,
}
"""The headings of configuration.md that have a table of settings."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def test_the_readme_stays_short() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120, f"README.md has {len(lines)} lines; what goes beyond 120 belongs in docs/"
    long = [number for number, line in enumerate(lines, 1) if len(line) > 120]
    assert not long, f"lines {long} of README.md have more than 120 characters"


def test_the_readme_leads_to_every_page() -> None:
    text = README.read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in text]
    assert not missing


@each_page
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        found = page.parent / path if path else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@each_page
def test_what_a_page_tells_to_run_is_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile, f"make {target}"
    for module in re.findall(r"python -m ((?:benchmarks|training|serve_app)[\w.]*)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module


@pytest.mark.parametrize("page", [*TOLD_TO_TYPE, ROOT / "training" / "README.md"], ids=name_of)
def test_command_lines_are_understood(page: Path) -> None:
    lines = [*shell_lines(page), *re.findall(r"^    (seedvc .*)", page.read_text(encoding="utf-8"), re.MULTILINE)]
    for line in lines:
        words = shlex.split(line, comments=True)
        if words and Path(words[0]).name == "seedvc":
            parser().parse_args(words[1:])  # ends the test by SystemExit where it does not know them


def test_the_readme_shows_three_commands_of_make() -> None:
    assert re.findall(r"^make (\w+)", blocks(README, "sh")[0], re.MULTILINE) == ["serve", "demo", "test"]


# Settings


def tables() -> dict[str, list[list[str]]]:
    """The rows of configuration.md's tables, by the heading above them."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in CONFIGURATION.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| `"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found.setdefault(heading, []).append([cell.strip() for cell in cells])
    return found


def documented(model: type[BaseModel]) -> list[tuple[str, str]]:
    """Each setting and its default, as the page must tell them."""
    told = []
    for name, field in model.model_fields.items():
        default: Any = field.default
        if default is PydanticUndefined:
            told.append((name, "required"))
        elif isinstance(default, BaseModel):
            told.append((name, "see below"))
        else:
            told.append((name, repr(yaml.safe_load(yaml.safe_dump(as_yaml(default))))))
    return told


def as_yaml(default: Any) -> Any:
    if isinstance(default, tuple):
        return [as_yaml(each) for each in default]
    return int(default) if isinstance(default, float) and default.is_integer() else default


def test_every_model_of_settings_has_a_section() -> None:
    kinds = [
        kind
        for module in (schema, serve)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, schema.Strict) and kind is not schema.Strict
    ]
    assert set(kinds) == set(SECTIONS.values())


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_setting_is_told_with_its_default(heading: str) -> None:
    told = []
    for name, default, meaning in tables()[heading]:
        assert meaning, name
        value = default if not default.startswith("`") else repr(as_yaml(yaml.safe_load(default.strip("`"))))
        told.append((name.strip("`"), value))
    expected = documented(SECTIONS[heading])
    assert [(name, as_told(value)) for name, value in told] == [(name, as_told(value)) for name, value in expected]


def as_told(value: str) -> str:
    """Lists of whole numbers may be told with or without a point."""
    return value.replace(".0", "")


def test_every_environment_variable_is_told() -> None:
    sources = [path for room in ("serve_app", "stages", "webrtc", "configs", "training") for path in python_in(room)]
    used = {name for path in sources for name in re.findall(r"SEEDVC_[A-Z_]+", path.read_text(encoding="utf-8"))}
    told = {row[0].strip("`") for row in tables()["Environment variables"]}
    assert used <= told and {name for name in told if name.startswith("SEEDVC_")} <= used


def python_in(room: str) -> Iterator[Path]:
    yield from (ROOT / room).rglob("*.py")


def yaml_blocks() -> list[tuple[str, str]]:
    return [(name_of(page), block) for page in PAGES for block in blocks(page, "yaml")]


@pytest.mark.parametrize(("page", "text"), yaml_blocks())
def test_yaml_is_accepted(page: str, text: str) -> None:
    tree = yaml.safe_load(text)
    if "applications" in tree:
        known = {"proxy_location", "http_options", "logging_config", "applications"}
        assert tree.keys() <= known
        tree = tree["applications"][0]
    if "args" in tree:
        serve.ServeArgs.model_validate(tree["args"])
    else:
        schema.Preset.model_validate(tree)


# Metrics


def test_the_metrics_are_told() -> None:
    source = (ROOT / "serve_app" / "metrics.py").read_text(encoding="utf-8")
    made = set(re.findall(r'"(seedvc_\w+)"', source))
    assert {f"ray_{name}" for name in made} == set(re.findall(r"`(ray_seedvc_\w+[a-z])`", OPERATIONS.read_text()))


# Files and functions


@cache
def names_in(path: Path) -> dict[str, dict[str, Any]]:
    """What a module defines: functions, classes and constants, and what is in its classes."""
    return members(ast.parse(path.read_text(encoding="utf-8")).body)


def members(body: list[ast.stmt]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in body:
        match node:
            case ast.ClassDef():
                found[node.name] = members(node.body)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found[node.name] = {}
            case ast.Assign():
                found |= {target.id: {} for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = {}
    return found


def holds(names: dict[str, Any], dotted: str) -> bool:
    for part in dotted.split("."):
        if part not in names:
            return False
        names = names[part]
    return True


@each_page
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = without_blocks(page)
    for path, name in re.findall(rf"`((?:{ROOMS})/[\w/.-]*?)(?::([A-Za-z_][\w.]*))?`", text):
        file = ROOT / path
        assert file.exists() or list(ROOT.glob(f"{path}*")), path  # decisions are named by their number
        if name:
            assert holds(names_in(file), name), f"{path}:{name}"


def test_names_that_the_architecture_tells_are_there() -> None:
    """Those without a file are of one that is named before."""
    text = without_blocks(ARCHITECTURE)
    files = {ROOT / path for path in re.findall(r"`([\w/]+\.py)", text)}
    known: dict[str, Any] = {}
    for file in sorted(files):
        for name, inside in names_in(file).items():
            known[name] = known.get(name, {}) | inside
    names = re.findall(r"`([A-Z]\w+(?:\.\w+)*)`", text)
    assert len(names) > 15
    missing = [name for name in names if not holds(known, name)]
    assert not missing


@pytest.mark.parametrize("heading", ["A recording", "A call"])
def test_each_way_is_told_by_a_picture_and_fifteen_lines(heading: str) -> None:
    section = ARCHITECTURE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    assert section.count("```mermaid") == 1
    told = re.sub(r"```.*?```", "", section, flags=re.DOTALL)
    assert len([line for line in told.splitlines() if line.strip()]) <= 15


def test_decisions_are_numbered_once_and_tell_the_same_four_things() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        told = [re.search(rf"^\*\*{part}\.\*\*", text, re.MULTILINE) for part in ("Context", "Options", "Decision")]
        assert all(told) and "**Consequence" in text, page.name


def test_the_imports_that_the_architecture_tells_are_those_that_are_kept() -> None:
    from tests.test_imports import MAY_IMPORT

    rows = re.findall(r"^\| `(\w+)/` \|[^|]*\|([^|]*)\|", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    rooms = {room for room, _ in rows}
    assert rooms == set(MAY_IMPORT)
    for room, imports in rows:
        named = set(re.findall(r"`(\w+)`", imports))
        if named:
            assert named == MAY_IMPORT[room], room
