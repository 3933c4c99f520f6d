"""What a figure was measured on, when, and by which command."""

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")


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
        "command": " ".join(["python", "-m", module, *sys.argv[1:]]),
    }
