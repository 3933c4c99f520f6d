"""The track that a peer sends: one Opus packet each 20 ms by its own clock, however unevenly blocks come."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av.packet import Packet
from av.stream import Stream

from webrtc.opus import FRAME, RATE_HZ, OpusEncoder
from webrtc.packets import PacketMaker, SendCounts
from webrtc.playout import Playout, Samples
from webrtc.rate import Rate

TICK_S = FRAME / RATE_HZ
MAX_BEHIND = 2
"""Ticks made up for after a stall, back to back: the client still has use for them. Older ones are left out."""


class Pace:
    """Which tick is next, and when it is due: ticks lie on one grid of 20 ms, which only `slew` moves. Pure."""

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self._tick = -1
        self.left_out = 0
        """Ticks that stalls have cost."""

    def slew(self, later_s: float) -> None:
        """Moves all ticks to come."""
        self._start_s += later_s

    def next(self, now_s: float) -> tuple[int, float]:
        """The number of the next tick, from 0, and when it is due."""
        self._tick += 1
        newest = int((now_s - self._start_s) / TICK_S)
        if newest - self._tick > MAX_BEHIND:
            self.left_out += newest - self._tick
            self._tick = newest
        return self._tick, self._start_s + self._tick * TICK_S


class SendTrack(MediaStreamTrack):
    """Encodes what the playout has, and silence where it has nothing.

    aiortc asks for the next packet as soon as it has sent one, and sends at once what it gets: so `recv` keeps the
    pace. One sender only reads a track.
    """

    kind = "audio"

    def __init__(
        self,
        playout: Playout,
        encoder: OpusEncoder,
        on_failure: Callable[[BaseException], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__()
        self._playout, self._on_failure = playout, on_failure
        self._packets = PacketMaker(encoder)
        self._clock, self._sleep = clock, sleep
        self._pace: Pace | None = None

    @property
    def counts(self) -> SendCounts:
        return self._packets.counts

    @property
    def ticks_left_out(self) -> int:
        """Packets that were never made, since this process stood still."""
        return 0 if self._pace is None else self._pace.left_out

    def play(self, samples: Samples) -> None:
        """Appends sound at 22.05 kHz to what waits to be sent."""
        self._playout.push(samples, self._clock())

    def set_rate(self, rate: Rate) -> None:
        """Sets the bitrate and the copies of the next packets."""
        self._packets.set_rate(rate)

    async def recv(self) -> "Packet[Stream]":
        """The next packet that is worth sending, when it is due; MediaStreamError after `stop`.

        Any other error goes to `on_failure`: aiortc would write it down, and send nothing for the rest of the call.
        """
        try:
            return await self._next()
        except Exception as error:
            if not isinstance(error, MediaStreamError):
                self._on_failure(error)
            raise

    async def _next(self) -> "Packet[Stream]":
        if self._pace is None:
            self._playout.clear()  # sound from before the connection is old
            self._pace = Pace(self._clock())
        while True:
            tick, due_s = self._pace.next(self._clock())
            await self._sleep(max(0.0, due_s - self._clock()))  # also 0: the event loop gets its turn
            if self.readyState != "live":
                raise MediaStreamError("the track has been stopped")
            packet = self._packets.make(self._playout.frame(due_s), tick)
            self._pace.slew(self._playout.slew_s)
            if packet is not None:
                return packet
