"""A bounded number of places for clients that send. Slow ones lose theirs to newcomers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from configs.serve import Limits
from serve_app.errors import AtCapacity, Displaced, UploadStalled

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_GRACE_S = 1.0
"""How long a new client counts as sending: its first bytes are under way."""
_CREDIT_S = 10.0
"""How long a place is safe after a burst: live sound may pause."""


class Place:
    """One client's place, while it sends and until it is answered."""

    def __init__(self, limits: Limits, grace_s: float = 0.0) -> None:
        self._limits = limits
        self._begun_s = time.monotonic()
        self.safe_until_s = self._begun_s + grace_s
        """Until then the client counts as sending. Each byte extends it."""
        self.given_up = False
        self._silent = True
        self._waiting: asyncio.Timeout | None = None

    async def receive(self, receive: Receive) -> MutableMapping[str, Any]:
        """The next message of the body.

        Raises:
            UploadStalled: no bytes for too long. Displaced: too few, and another request needed the place.
        """
        limits = self._limits
        pause_s = limits.max_upload_wait_s if self._silent else limits.max_upload_pause_s
        left_s = self._begun_s + limits.max_upload_s - time.monotonic()
        try:
            message = await self.wait(receive, min(pause_s, left_s))
        except TimeoutError:
            raise UploadStalled(min(pause_s, limits.max_upload_s)) from None
        self._count(len(message.get("body", b"")), ended=not message.get("more_body", False))
        return message

    async def wait(self, receive: Receive, limit_s: float | None = None) -> MutableMapping[str, Any]:
        """The next message of any kind; Displaced where the place is given up meanwhile."""
        try:
            if self.given_up:
                raise TimeoutError
            async with asyncio.timeout(limit_s) as self._waiting:
                return await receive()
        except TimeoutError:
            if self.given_up:
                raise Displaced from None
            raise
        finally:
            self._waiting = None

    def give_up(self) -> None:
        """Ends the request with Displaced."""
        self.given_up = True
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def _count(self, n_bytes: int, *, ended: bool) -> None:
        now_s = time.monotonic()
        self._silent = self._silent and not n_bytes
        earned_s = n_bytes / self._limits.min_upload_bytes_per_s
        self.safe_until_s = min(max(self.safe_until_s, now_s) + earned_s, now_s + _CREDIT_S)
        if ended:
            self.safe_until_s = float("inf")


class Places:
    """All places for one kind of request, which `what` names in the plural.

    A new place is safe for a second, unless others may take it `at_once`.
    """

    def __init__(self, what: str, n_places: int, limits: Limits, *, at_once: bool = False) -> None:
        self._what, self._n_places, self._limits = what, n_places, limits
        self._grace_s = 0.0 if at_once else _GRACE_S
        self._taken: set[Place] = set()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self) -> Place:
        """A place for one more client; AtCapacity where every one is held by a client that sends."""
        if len(self._taken) >= self._n_places:
            slowest = slowest_of(self._taken)
            if slowest is None:
                message = f"{self._n_places} {self._what} are being served, which is the limit; try again soon"
                raise AtCapacity(message, self._limits.retry_after_s, "too_many_concurrent_requests")
            slowest.give_up()
            self.free(slowest)
        place = Place(self._limits, self._grace_s)
        self._taken.add(place)
        return place

    def free(self, place: Place) -> None:
        """Ends a place, where it has not ended."""
        self._taken.discard(place)


def slowest_of(places: Iterable[Place]) -> Place | None:
    """The place to give to another request: of the clients that send too little, the one that sent least."""
    now_s = time.monotonic()
    slow = [place for place in places if place.safe_until_s < now_s and not place.given_up]
    return min(slow, key=lambda place: place.safe_until_s, default=None)
