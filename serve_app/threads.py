"""Blocking calls of a coroutine, in a worker thread, and threads that come last."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

NICENESS = 10
"""Of threads that compute for recordings beside an event loop. They may hold Python's lock while they wait for a core;
with a tenth of it the loop gets the lock back soon."""


def give_way() -> None:
    """The calling thread, and those that it starts, leave most of a core to others. On Linux only: elsewhere a thread
    has no niceness of its own."""
    if sys.platform == "linux":
        with suppress(OSError):  # who gives way more already may not give way less
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def come_last() -> None:
    """The calling thread, and those that it starts, take what others leave: a core that only such threads are on
    counts as free. They still get three thousandths of a full one. On Linux only."""
    if sys.platform == "linux":
        with suppress(OSError):  # some sandboxes know one class only
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


_computing = ThreadPoolExecutor(thread_name_prefix="computing", initializer=give_way)


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls in a worker thread. A cancelled caller leaves only when the call has ended, so that nothing is closed
    or used twice while a thread is still inside it."""
    return await _ended(asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs)))


async def computed(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The same for what takes a core for a while: in a thread that gives way."""
    loop = asyncio.get_running_loop()
    return await _ended(loop.run_in_executor(_computing, partial(function, *args, **kwargs)))


async def _ended(call: asyncio.Future[R]) -> R:
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise
