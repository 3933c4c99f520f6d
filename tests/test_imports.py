"""The rooms stay apart: which package may import which, and where each heavy library lives."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# package -> our packages that it may import, besides itself
MAY_IMPORT = {
    "configs": set[str](),
    "stages": {"configs"},
    "webrtc": {"configs"},
    "serve_app": {"configs", "stages", "webrtc"},
    "training": {"configs", "stages"},
    "benchmarks": {"configs", "stages", "webrtc", "serve_app", "training"},
}
# heavy library -> the packages that may import it; benchmarks measure whatever they like
HOME_OF = {
    "torch": {"stages", "training"},
    "torchaudio": {"stages", "training"},
    "safetensors": {"stages", "training"},
    "av": {"webrtc"},
    "aiortc": {"webrtc"},
    "ray": {"serve_app"},
    "fastapi": {"serve_app"},
    "starlette": {"serve_app"},
    "redis": {"serve_app"},
    "boto3": {"serve_app"},
}


def sources() -> Iterator[Path]:
    for package in MAY_IMPORT:
        yield from sorted((ROOT / package).rglob("*.py"))


def imported_names(source: str) -> set[str]:
    """Top-level package names that a module imports anywhere, inside functions too."""
    names = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    names = imported_names(path.read_text(encoding="utf-8"))
    ours = names & MAY_IMPORT.keys() - {package}
    assert ours <= MAY_IMPORT[package], f"{package} may not import {sorted(ours - MAY_IMPORT[package])}"
    if package != "benchmarks":
        strays = {name for name in names & HOME_OF.keys() if package not in HOME_OF[name]}
        assert not strays, f"{sorted(strays)} may not be imported in {package}"


def test_no_package_imports_the_manifests_or_tests() -> None:
    for path in sources():
        assert not imported_names(path.read_text(encoding="utf-8")) & {"cluster", "tests", "samples"}, path


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b\nfrom c.d import e\ndef f():\n    if x:\n        import g\n"
    assert imported_names(source) == {"a", "c", "g"}
