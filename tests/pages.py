"""The documents of this project, and what is in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TOLD_TO_TYPE = [README, *sorted((ROOT / "docs").glob("*.md"))]
"""What tells users what to type."""
PAGES = [
    *TOLD_TO_TYPE,
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    *[ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")],
    *[ROOT / folder / "README.md" for folder in ("cluster", "training", "samples")],
]


def blocks(page: Path, language: str) -> list[str]:
    """Its fenced blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def shell_lines(page: Path) -> list[str]:
    """What it tells to type into a shell."""
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def without_blocks(page: Path) -> str:
    """Its text without fenced blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
