"""`seedvc report`: what a report of a fault needs, and nothing that its sender would not show."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from serve_app.commands import UserMistake, say
from serve_app.commands.machine import processor

PACKAGES = ("seedvc-serve", "torch", "torchaudio", "ray", "aiortc", "av", "fastapi", "starlette", "numpy")
HIDDEN = "(left out)"
_PRIVATE_KEY = re.compile(r"secret|token|password|credential|(?:^|_)key(?:$|_)", re.IGNORECASE)
_URL_WITH_USER = re.compile(r"(\w+://)[^/@\s]+@")
_NVIDIA = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def run(args: argparse.Namespace) -> None:
    """Prints versions and machine, and the config where one is named, without secrets."""
    for name, value in [*_versions(), *_machine()]:
        say(f"{name:<16}{value}")
    if args.config is not None:
        say()
        say(f"{Path(args.config).name}:")
        for line in _config(Path(args.config)).splitlines():
            say(line)


def _versions() -> list[tuple[str, str]]:
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            found.append((package, "not installed"))
    return found


def _machine() -> list[tuple[str, str]]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return [
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("cpu", f"{processor()}, {os.cpu_count()} cores"),
        ("memory", f"{pages / 2**30:.1f} GiB"),
        ("gpu", _gpu()),
    ]


def _gpu() -> str:
    if shutil.which(_NVIDIA[0]) is None:
        return "none seen"
    done = subprocess.run(_NVIDIA, capture_output=True, text=True, timeout=20, check=False)
    return "; ".join(done.stdout.split("\n")).strip("; ") or "none seen"


def _config(path: Path) -> str:
    import yaml

    from configs import ConfigError
    from configs.schema import read_yaml

    try:
        return str(yaml.safe_dump(shown(read_yaml(path)), sort_keys=False))
    except ConfigError as error:
        raise UserMistake(str(error)) from error


def shown(tree: Any, key: str = "") -> Any:
    """A config without secrets: no values of keys that are named like one, no users in URLs, no home folder."""
    if isinstance(tree, dict):
        return {name: shown(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, list):
        return [shown(value, key) for value in tree]
    if _PRIVATE_KEY.search(key) and not key.endswith("_env"):  # the name of a variable is no secret
        return HIDDEN
    if isinstance(tree, str):
        return _URL_WITH_USER.sub(rf"\1{HIDDEN}@", tree).replace(os.path.expanduser("~") + os.sep, "~" + os.sep)
    return tree
