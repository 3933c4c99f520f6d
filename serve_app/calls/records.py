"""Records of calls: what a client wants that comes back after a loss, whichever replica it reaches then."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from serve_app.calls.protocol import Wishes

KEPT_S = 120.0
"""How long a record is kept that nobody renews: as long as a client tries to come back."""
MAX_LEFT = 1024
"""Records in memory of calls that are over; the oldest gives way."""


class Record(BaseModel):
    """One call as its client wants it. A newer server may have written more."""

    model_config = ConfigDict(frozen=True)

    owner: str
    """The ingress replica that holds the call."""
    wishes: Wishes
    key_id: str | None = None
    """Of its caller's key; None for the operator's, and where no key is asked for."""


class Records(Protocol):
    """Where records are kept. `keep`, `leave` and `drop` never wait; `run` does what they ask for."""

    @property
    def is_away(self) -> bool:
        """Whether the store does not answer: calls are held all the same."""

    def keep(self, session_id: str, record: Record) -> None:
        """Keeps the record, and renews it until the call is over."""

    def leave(self, session_id: str) -> None:
        """The call is over and may come back: its record stays for a while."""

    def drop(self, session_id: str) -> None:
        """Forgets the record."""

    async def find(self, session_id: str) -> Record | None:
        """The record, None where there is none (any more); Unavailable where the store does not answer."""

    async def is_gone(self, session_id: str) -> bool:
        """Whether its owner has not renewed the record lately; Unavailable where the store does not answer."""

    async def run(self) -> None:
        """Keeps the store up to date, for ever."""


class MemoryRecords:
    """Records of this replica's own calls. They go with it."""

    is_away = False

    def __init__(self, kept_s: float = KEPT_S) -> None:
        self._kept_s = kept_s
        self._live: dict[str, Record] = {}
        self._left: OrderedDict[str, tuple[float, Record]] = OrderedDict()

    def keep(self, session_id: str, record: Record) -> None:
        """Keeps the record."""
        self._live[session_id] = record

    def leave(self, session_id: str) -> None:
        """Keeps it for a while longer."""
        if (record := self._live.pop(session_id, None)) is not None:
            self._left[session_id] = (asyncio.get_running_loop().time(), record)
            if len(self._left) > MAX_LEFT:
                self._left.popitem(last=False)

    def drop(self, session_id: str) -> None:
        """Forgets it."""
        self._live.pop(session_id, None)
        self._left.pop(session_id, None)

    async def find(self, session_id: str) -> Record | None:
        """The record, where this replica had the call."""
        if session_id in self._live:
            return self._live[session_id]
        left_s, record = self._left.get(session_id, (0.0, None))
        return record if asyncio.get_running_loop().time() - left_s < self._kept_s else None

    async def is_gone(self, session_id: str) -> bool:
        """Never: nothing is known of other replicas."""
        return False

    async def run(self) -> None:
        """Nothing is left to do."""
