"""Shows the progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

from serve_app.commands import note
from serve_app.names import shown

_LINE_PERCENT = 10


class Progress:
    """Counts bytes, or what `unit` says, up to a known total."""

    def __init__(self, what: str, total: int, unit: str = "B") -> None:
        self._what = shown(what)
        self._total = max(total, 1)
        self._done = 0
        self._told_percent = 0
        self._bar: tqdm[NoReturn] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=self._what, unit=unit, unit_scale=unit == "B", leave=False)

    def advance(self, n: int) -> None:
        """So much more is done."""
        self._done += n
        if self._bar is not None:
            self._bar.update(n)
            return
        percent = min(self._done * 100 // self._total, 100)
        if percent >= self._told_percent + _LINE_PERCENT:
            self._told_percent = percent - percent % _LINE_PERCENT
            note(f"{self._what}: {self._told_percent} %")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
