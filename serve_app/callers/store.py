"""What a store of keys is."""

from __future__ import annotations

from typing import Protocol

from serve_app.callers.counts import Counts
from serve_app.callers.key import Key
from serve_app.errors import Unavailable


class KeysAway(Unavailable):
    """The store of keys cannot be read now."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        """For the log and the command line."""

    def __str__(self) -> str:
        return "the store of this server's keys does not answer; try again soon"


class KeyStore(Protocol):
    """Keeps keys by name. All methods raise KeysAway."""

    counts: Counts
    """What the holders of keys use, as far as it is known to all who share this store."""

    async def keys(self) -> list[Key]:
        """All keys."""

    async def add(self, key: Key) -> bool:
        """Keeps one more; False where its name is taken."""

    async def remove(self, name: str) -> bool:
        """Forgets one; False where there is none of that name."""

    async def close(self) -> None:
        """Hangs up."""
