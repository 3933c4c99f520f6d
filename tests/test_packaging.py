"""What is installed: the lock holds everything that is asked for, and a wheel holds what a service runs."""

import re
import tomllib
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
ASKED_FOR = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
LOCKED = [
    Requirement(re.split(r"\s+#|^#", line)[0])
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
NAMES = {canonicalize_name(each.name) for each in LOCKED}


def test_the_lock_names_one_version_of_each_package_for_any_build() -> None:
    assert len(NAMES) == len(LOCKED)
    assert all(re.fullmatch(r"==[^+,*]+", str(each.specifier)) and each.url is None for each in LOCKED)


@pytest.mark.parametrize("requirement", ASKED_FOR, ids=str)
def test_the_lock_agrees_with_what_is_asked_for(requirement: Requirement) -> None:
    found = [
        str(each.specifier) for each in LOCKED if canonicalize_name(each.name) == canonicalize_name(requirement.name)
    ]
    assert found == [str(requirement.specifier)]


@pytest.mark.parametrize("requirement", ASKED_FOR, ids=str)
def test_the_lock_holds_what_requirements_require(requirement: Requirement) -> None:
    seen = set[tuple[str, frozenset[str]]]()
    waiting = [requirement]
    while waiting:
        each = waiting.pop()
        key = (canonicalize_name(each.name), frozenset(each.extras))
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in NAMES
        try:
            lines = requires(each.name) or []
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        inner = [Requirement(line) for line in lines]
        chosen = each.extras or {""}
        waiting += [
            one for one in inner if not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in chosen)
        ]


@pytest.mark.parametrize(
    ("folder", "shipped"),
    [
        ("serve_app", True),
        ("serve_app.commands", True),
        ("stages.models", True),
        ("webrtc.page", True),
        ("configs.presets", True),
        ("samples.voices", True),
        ("benchmarks", False),
        ("training", False),
        ("tests", False),
        ("cluster", False),
    ],
)
def test_a_wheel_holds_what_a_service_runs(folder: str, shipped: bool) -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert (ROOT / folder.replace(".", "/")).is_dir()
    assert any(fnmatch(folder, pattern) for pattern in patterns) is shipped
