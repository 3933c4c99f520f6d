"""This machine: its processor and memory, and what a block of calls takes on it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from serve_app.calls.forecast import Measured
from serve_app.commands import UserMistake
from stages.timing import Spread

AT_ONCE = 2
BLOCKS, SECONDS = 100, 10.0
"""Of a thorough measurement."""
QUICK_BLOCKS, QUICK_SECONDS = 25, 1.5
_CPU_INFO, _MEMORY = Path("/proc/cpuinfo"), Path("/proc/meminfo")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_FEATURES = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "AMX": {"amx_tile"},
}
"""What makes networks faster on a CPU, and the flags by which Linux tells of it."""


def cores() -> int:
    """Cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
    except (OSError, ValueError):  # no container, or another system
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def processor() -> str:
    """Its name."""
    return next(_told_in(_CPU_INFO, "model name"), platform.processor() or "unknown")


def features() -> tuple[list[str], list[str]] | None:
    """Which of AVX2, AVX-512, VNNI and AMX the processor has, and which it has not; None where that is not told."""
    flags = set(next(_told_in(_CPU_INFO, "flags"), "").split())
    if not flags:
        return None
    has = [name for name, known in _FEATURES.items() if known & flags]
    return has, [name for name in _FEATURES if name not in has]


def free_memory_gib() -> float | None:
    """What programs may still take; None where the system does not tell."""
    told = next(_told_in(_MEMORY, "MemAvailable"), None)
    return None if told is None else int(told.split()[0]) / 2**20


def _told_in(file: Path, name: str) -> Iterator[str]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name)


def measure(preset: str, weights: str | None = None, *, quick: bool = False) -> Measured:
    """Measures a block in processes of one thread, as replicas are. Quickly: only as many at once as there are cores,
    and giving way to calls that have begun.

    Raises:
        UserMistake: the networks cannot be loaded.
    """
    repeats, at_most_s = (QUICK_BLOCKS, QUICK_SECONDS) if quick else (BLOCKS, SECONDS)
    n_cores = cores()
    try:
        with ExitStack() as stack:
            children = [stack.enter_context(_child(preset, weights, last=quick)) for _ in range(min(n_cores, AT_ONCE))]
            for child in children:
                _answer(child)  # "ready"
            alone = _blocks(children[:1], repeats, at_most_s) if not quick else None
            at_once = _blocks(children, repeats, at_most_s) if alone is None or len(children) > 1 else alone
    except OSError as error:  # no process or no memory for one more
        raise UserMistake(f"the networks cannot be measured: {error.strerror}") from error
    whole = Spread.of(_sums(at_once))
    stages_ms = {stage: Spread.of(took).p50_ms for stage, took in (alone or at_once).items()}
    return Measured(n_cores, Spread.of(_sums(alone)) if alone else whole, whole, stages_ms)


def _blocks(children: Sequence[subprocess.Popen[str]], repeats: int, at_most_s: float) -> dict[str, list[float]]:
    """Seconds of all blocks by stage, which the children computed at the same time."""
    for child in children:
        assert child.stdin is not None
        child.stdin.write(f"{repeats} {at_most_s}\n")
        child.stdin.flush()
    took: list[dict[str, list[float]]] = [json.loads(_answer(child)) for child in children]
    return {stage: [seconds for each in took for seconds in each[stage]] for stage in took[0]}


def _sums(took: dict[str, list[float]]) -> list[float]:
    return [sum(stages) for stages in zip(*took.values(), strict=True)]


@contextmanager
def _child(preset: str, weights: str | None, *, last: bool) -> Iterator[subprocess.Popen[str]]:
    """A process that measures, after all others where it comes `last`; it ends with the block."""
    first = ["nice", "-n", "19"] if last and shutil.which("nice") else []
    command = [*first, sys.executable, "-m", "stages.timing", preset, *([weights] if weights else [])]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(command, **pipes, env=os.environ | threads, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _answer(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None and child.stderr is not None
    if line := child.stdout.readline():
        return line
    reason = (child.stderr.read().strip().splitlines() or ["no reason was given"])[-1]
    raise UserMistake(f"the networks cannot be measured: {reason}")
