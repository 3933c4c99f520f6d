"""Says for which Python a requirement has no wheel on x86-64 Linux, by extra; `make lock` runs it.

It resolves what constraints.txt pins, for each Python that pyproject.toml names, by uv and without building anything.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
SERVICE = "make serve"
ALONE = "demo, without its requirements"
GROUPS: dict[str, list[str]] = {
    SERVICE: PROJECT["dependencies"],
    ALONE: re.findall(r"--no-deps (\S+==\S+)", (ROOT / "Makefile").read_text(encoding="utf-8")),
    **PROJECT["optional-dependencies"],
}
NEEDED = (SERVICE, ALONE, "demo")
"""What every named Python must have wheels of; the other groups are only told about."""
OLDER, NEWER = "2_28", "2_34"
"""Of the C library that wheels are built for: Debian 11 and RHEL 8 have the older, Debian 12 and RHEL 9 the newer."""


def has_wheels(requirements: list[str], python: str, libc: str, *options: str) -> bool:
    """Whether these and all that they require come compiled, or need no compiling."""
    uv = [str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet", "--no-python-downloads"]
    chosen = ["--python-version", python, "--python-platform", f"x86_64-manylinux_{libc}", "--only-binary", ":all:"]
    command = [*uv, *chosen, *options, "--constraint", "constraints.txt", "-"]
    done = subprocess.run(command, cwd=ROOT, input="\n".join(requirements), text=True, capture_output=True)
    if done.returncode and "No solution found" not in done.stderr:
        sys.exit(done.stderr)  # the index cannot be reached, or the like
    return done.returncode == 0


def lacking(requirements: list[str], python: str, *options: str) -> dict[str, str]:
    """The requirements that have no wheel, and what helps."""
    found = {}
    for each in [] if has_wheels(requirements, python, OLDER, *options) else requirements:
        if not has_wheels([each], python, OLDER, *options):
            newer = has_wheels([each], python, NEWER, *options)
            found[each] = f"needs glibc {NEWER.replace('_', '.')}" if newer else "has to be compiled, if it can be"
    return found


def lines(python: str) -> list[str]:
    """What to tell of one Python, a line each."""
    found = []
    for group, requirements in GROUPS.items():
        options = ["--no-deps"] if group == ALONE else []
        missing = lacking(requirements, python, *options)
        found += [f"Python {python}, {group}: no wheel of {each} ({why})" for each, why in missing.items()]
    return found or [f"Python {python}: wheels of everything"]


def main() -> int:
    """The exit code: 1 where the service or the demo lacks a wheel."""
    with ThreadPoolExecutor(len(PYTHONS)) as pool:  # uv mostly waits for the index
        told = [line for found in pool.map(lines, PYTHONS) for line in found]
    print("\n".join(told))
    return int(any(f", {group}: " in line for line in told for group in NEEDED))


if __name__ == "__main__":
    sys.exit(main())
