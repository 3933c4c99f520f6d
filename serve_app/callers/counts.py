"""What the holders of keys use: leases of things that are held, sums of things that are used up each day."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Protocol

DAY_S = 86400


class Counts(Protocol):
    """Counts by name. Methods that ask a storage raise KeysAway."""

    async def take(self, name: str, member: str, most: int, for_s: float, old: str | None = None) -> int:
        """Takes or renews one of `most` places for a while, or takes over that of an `old` member, where it has one.

        Returns the number of places that are taken then, 0 where none is free.
        """

    async def give_back(self, name: str, member: str) -> None:
        """Frees a place early."""

    async def sum(self, name: str, amount: int, for_s: int) -> int:
        """Adds to a sum, which is forgotten some time after its first use; the sum."""


class MemoryCounts:
    """Counts of this process."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._places: defaultdict[str, dict[str, float]] = defaultdict(dict)
        self._sums: dict[str, tuple[int, float]] = {}
        self._swept_s = now()

    async def take(self, name: str, member: str, most: int, for_s: float, old: str | None = None) -> int:
        """As Counts."""
        self._sweep()
        now = self._now()
        held = {other: until for other, until in self._places[name].items() if until > now}
        self._places[name] = held
        has_place = member in held or (old is not None and held.pop(old, None) is not None)
        if not has_place and len(held) >= most:
            return 0
        held[member] = now + for_s
        return len(held)

    async def give_back(self, name: str, member: str) -> None:
        """As Counts."""
        self._places[name].pop(member, None)

    async def sum(self, name: str, amount: int, for_s: int) -> int:
        """As Counts."""
        self._sweep()
        total, until = self._sums.get(name, (0, self._now() + for_s))
        self._sums[name] = total + amount, until
        return total + amount

    def _sweep(self) -> None:
        """Forgets now and then what is out of date: names of days and seconds never come again."""
        now = self._now()
        if now - self._swept_s < 60:
            return
        self._swept_s = now
        self._sums = {name: kept for name, kept in self._sums.items() if kept[1] > now}
        for name in [name for name, held in self._places.items() if all(until <= now for until in held.values())]:
            del self._places[name]


def today() -> str:
    """The day in UTC, as part of a name."""
    return datetime.now(UTC).strftime("%Y%m%d")


def tomorrow_unix() -> int:
    """When the sums of the day begin anew."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return int(midnight.timestamp()) + DAY_S


def seconds_left_today() -> int:
    """How long until then, at least 1."""
    return max(1, tomorrow_unix() - int(datetime.now(UTC).timestamp()))
