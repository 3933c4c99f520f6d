"""The rooms stay apart: which package may import which, and where each heavy library lives."""

import ast
import subprocess
import sys
from collections.abc import Container, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# package -> our packages that it may import, besides itself
MAY_IMPORT = {
    "configs": set[str](),
    "stages": {"configs"},
    "webrtc": {"configs"},
    "serve_app": {"configs", "stages", "webrtc"},
    "training": {"configs", "stages", "benchmarks"},  # the judges of what training/pairs.py makes
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


# Inside serve_app, from above to below: a module may import what stands in a lower row, or in its own folder.
ROWS = (
    {"app", "cli", "manifest"},
    {"ingress", "commands"},
    {"http", "keys"},
    {"edge", "access"},
    {"admission"},
    {"recordings", "calls"},
    {"graph"},
    {"voices"},
    {"uploads", "forms", "readiness", "instance"},
    {"multipart", "decoders", "places"},
    {"errors", "metrics", "names", "threads"},
)


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


def modules() -> dict[str, Path]:
    """Our modules by their dotted names."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sources()
    }


def imported_modules(path: Path, known: Container[str]) -> set[str]:
    """Those of our modules that a module imports anywhere, for types too."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(name for name in whole if name in known)
            if any(name not in known for name in whole) and node.module in known:
                found.add(node.module)
    return found


def test_there_are_no_circles() -> None:
    known = modules()
    graph = {name: imported_modules(path, known) - {name} for name, path in known.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_rooms_of_the_service_import_downwards() -> None:
    known = modules()
    row_of = {room: number for number, row in enumerate(ROWS) for room in row}
    strays = []
    for name, path in known.items():
        package, *rest = name.split(".")
        if package != "serve_app" or not rest:
            continue
        for other in imported_modules(path, known):
            if other.startswith("serve_app."):
                room, below = rest[0], other.split(".")[1]
                if room != below and row_of[room] >= row_of[below]:
                    strays.append(f"{name} imports {other}")
    assert not strays


def test_recordings_in_files_know_nothing_of_calls() -> None:
    known = modules()
    for name, path in known.items():
        if name.startswith("webrtc.files"):
            others = {other for other in imported_modules(path, known) if other.startswith("webrtc.")}
            assert all(other.startswith("webrtc.files") for other in others), name


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("stages.types", {"torch", "torchaudio", "ray", "av"}),
        ("serve_app.graph.deployments", {"av", "aiortc", "torch", "boto3", "redis"}),
        ("serve_app.cli", {"ray", "torch", "av", "fastapi", "boto3", "redis"}),
        ("serve_app.commands.local_call", {"ray", "aiortc", "fastapi", "websockets", "boto3"}),
    ],
)
def test_a_module_loads_no_more_than_it_uses(module: str, without: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not without & set(done.stdout.split())


def test_each_folder_says_what_it_is() -> None:
    for path in sources():
        if path.name == "__init__.py" and path.parent.name not in ("training", "benchmarks", "models"):
            told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert told is not None and told.endswith("."), path


def test_no_package_imports_the_manifests_or_tests() -> None:
    for path in sources():
        assert not imported_names(path.read_text(encoding="utf-8")) & {"cluster", "tests", "samples"}, path


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b\nfrom c.d import e\ndef f():\n    if x:\n        import g\n"
    assert imported_names(source) == {"a", "c", "g"}
