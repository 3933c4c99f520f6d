"""Time on the processor of each process below this one, from /proc."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# what a command line says of its process, the first that matches
PARTS = (
    (r"--utility-sub-type=[a-z_.]*\.(\w+)", r"browser: \1"),
    (r"--type=([\w-]+)", r"browser: \1"),
    (r"chrom(e|ium)", "browser: main"),
    (r"^ray::ServeReplica:\w+:(\w+)", r"replica: \1"),
    (r"^ray::(\w+)", r"ray: \1"),
    (r"raylet/raylet ", "ray: raylet"),
    (r"gcs/gcs_server ", "ray: gcs_server"),
    (r"ray/\S*?([\w]+/[\w]+)\.py", r"ray: \1"),
)
OTHER = "other: what measures"


def part_of(command: str) -> str:
    """Which part of the whole a command line is, as `group: name`."""
    for pattern, name in PARTS:
        if found := re.search(pattern, command):
            return found.expand(name)
    return OTHER


@dataclass
class Work:
    """Time on the processor since it was made, by part."""

    before_s: dict[int, float] = field(default_factory=lambda: {pid: _spent_s(pid) for pid in _below(os.getpid())})
    since_s: float = field(default_factory=time.monotonic)

    def spent_s(self) -> dict[str, float]:
        """Seconds of each part; processes that ended meanwhile are left out."""
        spent: defaultdict[str, float] = defaultdict(float)
        for pid in _below(os.getpid()):
            spent[part_of(_command(pid))] += _spent_s(pid) - self.before_s.get(pid, 0.0)
        return {part: spent[part] for part in sorted(spent)}

    def cores(self) -> dict[str, float]:
        """The same as mean cores."""
        took_s = time.monotonic() - self.since_s
        return {part: round(seconds / took_s, 4) for part, seconds in self.spent_s().items()}


def _below(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid in (int(path.name) for path in PROC.iterdir() if path.name.isdigit()):
        if fields := _stat(pid):
            children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _stat(pid: int) -> list[str]:
    """The fields after the name, of a process that may be gone."""
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _spent_s(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S if fields else 0.0


def _command(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
