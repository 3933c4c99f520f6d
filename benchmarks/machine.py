"""What a figure was measured on, when, and by which command."""

import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

CPU_INFO = Path("/proc/cpuinfo")
TRIES = 150
WORK_SIZE = 384


def machine(module: str) -> dict[str, object]:
    """Processor, versions, date and the command line of `python -m module`."""
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": next(named, platform.processor()),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", "-m", module, *map(_shown, sys.argv[1:])]),
    }


def _shown(argument: str) -> str:
    """As it was given, but for the folders of an absolute path, which are this machine's own."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def same_work() -> dict[str, object]:
    """What one and the same work takes on one core, some 20 ms, while nothing else of ours runs: p5, p50, p95 and p98.

    A machine of its own takes equally long each time. Where the host shares its cores, p95 is far above p50, and
    deadlines and delays are as uneven whatever the program does.
    """
    matrix = torch.ones(WORK_SIZE, WORK_SIZE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    took = []
    for _ in range(TRIES):
        start = time.perf_counter()
        for _ in range(20):
            torch.mm(matrix, matrix)
        took.append((time.perf_counter() - start) * 1000)
        time.sleep(0.02)
    torch.set_num_threads(threads)
    return {"same_work_ms": {f"p{share}": round(float(np.percentile(took, share)), 1) for share in (5, 50, 95, 98)}}
