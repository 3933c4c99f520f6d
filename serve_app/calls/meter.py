"""Holds calls to the limits of their callers' keys, while they run too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context

from serve_app.callers.ring import Caller, Lease
from serve_app.callers.store import KeysAway
from serve_app.calls.protocol import End
from serve_app.calls.session import Call

LOOK_EVERY_S = 2.0
"""How often a running call's minutes are counted and its key is looked up."""
REVOKED = End("key_revoked", "the key of this call was revoked")


class Meter:
    """Starts calls as far as the keys of their callers allow, and ends those that go beyond."""

    def __init__(self, retry_after_s: int) -> None:
        self._retry_after_s = retry_after_s
        self._following: set[asyncio.Task[None]] = set()

    async def start(
        self, caller: Caller, session_id: str, start: Callable[[], Call], replaces: str | None = None
    ) -> Call:
        """A call that has begun; AtCapacity or Refused where the key's limits say no.

        One that replaces another of the same key has that one's place.
        """
        lease = await caller.begin_call(session_id, self._retry_after_s, replaces)
        if lease is None:
            return start()
        try:
            call = start()
        except BaseException:
            with suppress(KeysAway):
                await lease.end()
            raise
        # In a context of its own, as the call is: both outlive the request that opened it.
        following = asyncio.create_task(self._follow(call, lease), context=Context())
        self._following.add(following)
        following.add_done_callback(self._following.discard)
        return call

    async def _follow(self, call: Call, lease: Lease) -> None:
        """Lasts as long as the call. A store that is away ends no call: what was not counted is counted later."""
        now = asyncio.get_running_loop().time
        counted_s = now()
        try:
            while not call.over.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await call.over.wait()
                elapsed_s, counted_s = now() - counted_s, now()
                with suppress(KeysAway):
                    if used_up := await lease.renew(elapsed_s):
                        call.stop(End("quota_exceeded", used_up))
                    elif await lease.is_revoked():
                        call.stop(REVOKED)
        finally:
            with suppress(KeysAway):
                await lease.end()
