"""What a call shows on the terminal: one live line, and lines that stay."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from serve_app.commands import note

PLAIN_LINE_EVERY_S = 10


class Display:
    """One live line on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._shown = 0
        self._adapted: Any = None

    def begin(self, voice: str, settings: Mapping[str, Any]) -> None:
        """Tells that the call is up, with its settings as the protocol has them."""
        mode, block_ms, delay_ms = (settings[name] for name in ("mode", "block_ms", "delay_ms"))
        heard = "your own voice" if settings["bypass"] else voice
        self.say(f"in a call as {heard}: {mode} delay, blocks of {block_ms} ms, voice at most {delay_ms} ms behind")
        self.adapt(settings)

    def one_step(self) -> None:
        """Tells that the steps which were asked for change nothing."""
        self.say("--steps has no effect: this preset renders in one step")

    def adapt(self, settings: Mapping[str, Any]) -> None:
        """Tells where the settings are no longer those that were asked for, or are so again."""
        adapted, before = settings.get("adapted"), self._adapted
        self._adapted = adapted
        if adapted is not None and adapted != before:
            self.say(adapted["message"])
        elif adapted is None and before is not None:
            self.say(f"blocks of {settings['block_ms']} ms again")

    def say(self, line: str) -> None:
        """A line that stays."""
        note(line, before=_clear())

    def show(self, line: str) -> None:
        """The figures of this second."""
        if sys.stderr.isatty():
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            note(line[: width - 1], before=_clear(), end="")
        elif self._shown % PLAIN_LINE_EVERY_S == 0:
            self.say(line)
        self._shown += 1


def _clear() -> str:
    return "\r\x1b[K" if sys.stderr.isatty() else ""


def blocks_told(counts: Mapping[str, int]) -> str:
    """What became of the blocks."""
    return "blocks " + " ".join(f"{counts[kind]} {kind}" for kind in ("done", "late", "dropped", "skipped"))


def ms(value: float | None) -> str:
    """A time in whole ms; a dash where it is not known yet."""
    return "-" if value is None else f"{value:.0f} ms"
