"""Renews constraints.txt with the whole resolved set of requirements, and says which Python lacks a wheel of it.

`make lock` runs it. Versions stand without the suffix of a build (+cpu), so that each platform takes its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")
WITHOUT_REQUIREMENTS = ("resemblyzer==0.1.4",)  # see the Makefile
HEADER = "# The whole resolved set; `make` installs by it, `make lock` renews it.\n"


def resolved(*requirements: str) -> list[str]:
    """What pip would install for requirements, all that these require included."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    done = subprocess.run([*command, *requirements], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found = [each["metadata"] for each in json.loads(done.stdout)["install"]]
    pins = {each["name"].lower(): each["version"].partition("+")[0] for each in found}
    return [f"{name}=={version}" for name, version in sorted(pins.items()) if name != PROJECT["name"]]


def has_wheels(requirements: list[str], python: str) -> bool:
    """Whether all of them come compiled for a Python on x86-64 Linux."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--only-binary=:all:"]
    chosen = ["--python-version", python, "--implementation", "cp"]
    chosen += [option for platform in PLATFORMS for option in ("--platform", platform)]
    with tempfile.TemporaryDirectory() as target:
        done = subprocess.run([*command, *chosen, "--target", target, *requirements], capture_output=True)
    return done.returncode == 0


def main() -> int:
    """The exit code: 1 where a wheel is missing."""
    extras = ",".join(sorted(PROJECT["optional-dependencies"]))
    pins = resolved(f".[{extras}]", *PROJECT["dependencies"])
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join([*pins, *WITHOUT_REQUIREMENTS]) + "\n", encoding="utf-8")
    # The pinned requirements alone: pip reads the markers of what they require as for the Python that runs it.
    served = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["demo"]]
    missing = 0
    for python in PYTHONS:
        lacking = [] if has_wheels(served, python) else [each for each in served if not has_wheels([each], python)]
        missing += len(lacking)
        print(f"Python {python}: " + (f"no wheel of {', '.join(lacking)}" if lacking else "wheels of everything"))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
