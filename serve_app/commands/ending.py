"""Ends a command by a signal, after undoing what it began elsewhere."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turns the first signal that ends a process into SystemExit; a closed terminal sends several.

    A signal that is ignored, as under nohup, stays so. An event loop that runs is left between two callbacks, so that
    no task is torn in the middle and all are cancelled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    heeded = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for each in heeded:
            signal.signal(each, signal.SIG_IGN)
        try:
            asyncio.get_running_loop().call_soon_threadsafe(leave, number)
        except RuntimeError:  # no loop runs
            leave(number)

    def leave(number: int) -> None:
        raise SystemExit(128 + number)

    for number in heeded:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])
    if came:  # the loop was over before it could be left
        leave(came[0])
