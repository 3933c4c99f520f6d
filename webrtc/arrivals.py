"""How late packets come against their sender's clock; the jitter buffer sets its delay by it.

A packet's transit is its arrival on our clock minus its place on the sender's, in seconds. The two clocks share no
zero, so only differences mean something: the fastest packets show the path without delay, the slowest how much to wait.
"""

from bisect import bisect_left, insort
from collections import deque
from itertools import islice

SLOWEST_LEFT_OUT = 40
"""One packet in 40, and one more, may come later than `slow_s`: waiting for them would delay all."""
REMEMBERED = 128  # packets, 2.6 s of 20 ms each
REMEMBERED_S = 8.0  # older packets are forgotten, which matters while the sender leaves silence out
FAST_OVER = 50  # packets: enough to have an undelayed one among them, few enough to follow a drifting clock
FAST_NOW_OVER = 10


class Arrivals:
    """The transits of the last packets, in order of arrival. Never empty."""

    def __init__(self, arrival_s: float, transit_s: float) -> None:
        self._latest: deque[tuple[float, float]] = deque()
        self._ordered: list[float] = []  # the same transits, the fastest first
        self.add(arrival_s, transit_s)

    def add(self, arrival_s: float, transit_s: float) -> None:
        """Remembers one packet and forgets those that are too old."""
        self._latest.append((arrival_s, transit_s))
        insort(self._ordered, transit_s)
        while len(self._latest) > REMEMBERED or (
            len(self._latest) > FAST_NOW_OVER and self._latest[0][0] < arrival_s - REMEMBERED_S
        ):
            _, forgotten_s = self._latest.popleft()
            del self._ordered[bisect_left(self._ordered, forgotten_s)]
        recent = [transit_s for _, transit_s in islice(reversed(self._latest), FAST_OVER)]
        self.fast_s = min(recent)  # the transit of an undelayed packet
        self.fast_now_s = min(recent[:FAST_NOW_OVER])  # the same over fewer packets: follows a jump at once
        left_out = min(1 + len(self._ordered) // SLOWEST_LEFT_OUT, len(self._ordered) - 1)
        self.slow_s = self._ordered[-1 - left_out]  # the transit that nearly all packets stay below

    @property
    def last_s(self) -> float:
        """When the last packet came."""
        return self._latest[-1][0]

    @property
    def last_transit_s(self) -> float:
        """The transit of the last packet."""
        return self._latest[-1][1]

    @property
    def spread_s(self) -> float:
        """How much later than the fastest nearly all packets come."""
        return max(0.0, self.slow_s - self.fast_s)
