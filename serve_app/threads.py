"""Blocking calls of a coroutine, in a worker thread, and threads that come last."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

LAST = 19
"""The niceness of what comes last. It still gets one part in seventy of a core on which a call never rests."""


def come_last() -> None:
    """The calling thread, and those that it starts, give way to all others of the machine. On Linux only: elsewhere
    a thread has no niceness of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LAST)


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls in a worker thread. A cancelled caller leaves only when the call has ended, so that nothing is closed
    or used twice while a thread is still inside it."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise
