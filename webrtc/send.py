"""The track that a call sends: one Opus packet each 20 ms by its own clock, whatever the model does."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av.packet import Packet
from av.stream import Stream

from webrtc.opus import FRAME, RATE_HZ, OpusEncoder, is_dtx
from webrtc.playout import Playout, Samples
from webrtc.rate import Rate

TICK_S = FRAME / RATE_HZ
TIME_BASE = Fraction(1, RATE_HZ)
MAX_BEHIND = 2
"""Ticks made up for after a stall, back to back: a listener still has use for them. Older ones are left out."""

INAUDIBLE, HIDDEN = 0.001, 0.0056
"""-60 dBFS, and 45 dB below the speech before: frames that never rise above one of them are sent as silence ..."""
FORGET = 0.99
"""Of that speech's level, per frame: 4 dB each second."""
INAUDIBLE_AFTER = 3
"""... from its fourth frame on. libopus waits for the eleventh, and full sound bits go into hiss until then ..."""
REFRESH_AFTER = 20
"""... but for what libopus itself sends after so many frames of silence: listeners learn that the stream lives."""


class Pace:
    """Which tick is next, and when: on one grid of 20 ms, which only `slew` moves, so that nothing drifts. Pure."""

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self._tick = -1
        self.left_out = 0
        """Ticks that a stall has cost."""

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


@dataclass(slots=True)
class SendCounts:
    """What was sent."""

    packets: int = 0
    payload_bytes: int = 0
    silent: int = 0
    """Packets not sent because the packet before says already that there is silence."""


class SendTrack(MediaStreamTrack):
    """Encodes what the playout has, and silence where it has nothing.

    aiortc asks for the next packet as soon as it has sent one, and sends at once what it gets: the pace is here. A
    track that `recv` has started is read by one sender only.
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
        self._playout, self._encoder, self._on_failure = playout, encoder, on_failure
        self._clock, self._sleep = clock, sleep
        self._pace: Pace | None = None
        self._was_silent = False
        self._loudest = 0.0  # of late
        self._inaudible = 0  # frames in a row
        self._unheard = 0  # frames since the last one with sound in its packet
        self.counts = SendCounts()

    @property
    def ticks_left_out(self) -> int:
        """Packets never made because this process stood still."""
        return 0 if self._pace is None else self._pace.left_out

    def play(self, samples: Samples) -> None:
        """Sound at 22.05 kHz that is sent after what waits already."""
        self._playout.push(samples, self._clock())

    def set_rate(self, rate: Rate) -> None:
        """From the next packet on."""
        self._encoder.set_bitrate(rate.bitrate)
        self._encoder.set_expected_loss(rate.expected_loss_percent)

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
            self._playout.clear()  # what came before anybody listened is old
            self._pace = Pace(self._clock())
        while True:
            tick, due_s = self._pace.next(self._clock())
            await self._sleep(max(0.0, due_s - self._clock()))  # also where it is 0: the event loop gets its turn
            if self.readyState != "live":
                raise MediaStreamError("the track has been stopped")
            payload = self._encoded(self._playout.frame(due_s))
            self._pace.slew(self._playout.slew_s)
            silent, before = is_dtx(payload), self._was_silent
            self._was_silent = silent
            if silent and before:
                self.counts.silent += 1
                continue
            self.counts.packets += 1
            self.counts.payload_bytes += len(payload)
            packet = Packet(payload)
            packet.pts, packet.time_base = tick * FRAME, TIME_BASE
            return packet

    def _encoded(self, frame: Samples) -> bytes:
        """The frame's packet; of sound that nobody hears only the first byte, which stands for silence (RFC 6716)."""
        payload = self._encoder.encode(frame)  # in silence too: the encoder's state must follow
        peak = float(np.abs(frame).max())
        self._loudest = max(peak, FORGET * self._loudest)
        self._inaudible = self._inaudible + 1 if peak < max(INAUDIBLE, HIDDEN * self._loudest) else 0
        self._unheard += 1
        if self._inaudible > INAUDIBLE_AFTER and self._unheard <= REFRESH_AFTER:
            return payload[:1]
        if not is_dtx(payload):
            self._unheard = 0
        return payload
