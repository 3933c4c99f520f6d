"""The calling side of a call, for clients that are no browser: frames of 20 ms go out, frames of 20 ms come in.

The sound card, real or not, is the clock: in each 20 ms it calls `say` with what the microphone gave and `hear` for
what the speaker plays. Both may be called in a thread of the sound card's own.
"""

from __future__ import annotations  # PyAV's Packet takes its type argument in annotations only

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import MediaStreamTrack, RTCDtlsTransport, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtpPacket
from av.packet import Packet

from webrtc.ice import HANG_UP_S, IceServer, configuration
from webrtc.jitter import Event, JitterBuffer, Lost, Silence, Skip
from webrtc.jitter import Packet as Due
from webrtc.opus import FRAME, RATE_HZ, OpusDecoder, OpusEncoder, OpusError, Samples48k, is_dtx
from webrtc.rate import Rate, RateControl
from webrtc.reports import SenderReports
from webrtc.sdp import with_opus_parameters

MAX_WAITING_PACKETS = 10
"""200 ms of the microphone that the network has not taken; beyond it the oldest is dropped."""
MAX_HELD = 2 * FRAME
"""Decoded sound beyond the frame that is played; more means that the sound card is slower than the network."""
HELD_OVER = 50
"""Frames after which what was always held has shown that it is not needed: it goes in the next quiet one."""
QUIET = 0.003  # -50 dBFS
_TIME_BASE = Fraction(1, RATE_HZ)


@dataclass(frozen=True)
class CallerStats:
    """A call's network, as this side sees it; None where nothing was reported yet."""

    rtt_ms: float | None
    loss_out: float
    """Share of our packets that the other side missed, by its last report."""
    loss_in: float
    """Share of its packets that were not there when they were due, since the start."""
    jitter_ms: float
    jitter_buffer_ms: float
    held_ms: float
    """Decoded, but not played yet."""
    received_packets: int
    received_bytes: int
    """Opus payload only."""
    sent_packets: int
    dropped_packets: int


class Caller:
    """One connection that offers; lives in one event loop."""

    def __init__(self, servers: Iterable[IceServer] = ()) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = RTCPeerConnection(configuration(servers))
        self._voice = _SentVoice(self._loop)
        self._heard = _HeardVoice()
        self._rate = RateControl()
        self._reports = SenderReports()
        self.connected = asyncio.Event()
        self.closed = asyncio.Event()
        transceiver = self._connection.addTransceiver(self._voice, direction="sendrecv")
        codecs = RTCRtpSender.getCapabilities("audio").codecs
        transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == "audio/opus"])
        self._sender, self._receiver = transceiver.sender, transceiver.receiver
        # aiortc's own buffer never comes back from the delay that one lost packet costs; its statistics stay in use.
        name = "_RTCRtpReceiver__jitter_buffer"
        if not hasattr(self._receiver, name):
            raise RuntimeError(f"this aiortc's receiver has no {name}; 1.16.0 has")
        setattr(self._receiver, name, self._heard)
        self._connection.on("connectionstatechange", self._follow)

    @property
    def transport(self) -> RTCDtlsTransport:
        """What carries the sound, for those who measure it; there after `offer`."""
        return self._receiver.transport

    async def offer(self) -> str:
        """The offer, with all candidates in it."""
        await self._connection.setLocalDescription(await self._connection.createOffer())
        return with_opus_parameters(self._connection.localDescription.sdp)

    async def accept(self, answer: str) -> None:
        """Connects to who gave this answer; `connected` or `closed` is set later. ValueError where it does not fit."""
        await self._connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    def say(self, frame: Samples48k) -> None:
        """The next 20 ms of the microphone; never waits."""
        self._loop.call_soon_threadsafe(self._voice.put, frame)

    def hear(self, now_s: float) -> Samples48k:
        """The 20 ms that the speaker plays next; `now_s` is the monotonic clock, best without the card's jitter."""
        return self._heard.frame(now_s)

    async def follow(self) -> CallerStats:
        """What is known about the network; the bitrate goes by it, so ask about once a second."""
        reports = self._reports
        if reports.read(await self._sender.getStats()):
            self._voice.adapt(self._rate.report(reports.loss, reports.rtt_ms, self._loop.time()))
        return self._heard.stats(reports.rtt_ms, reports.loss, self._voice.sent, self._voice.dropped)

    async def close(self) -> None:
        """Hangs up; a relay that does not answer any more is not waited for."""
        self.closed.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(HANG_UP_S):
                await self._connection.close()

    def _follow(self) -> None:
        state = self._connection.connectionState
        if state == "connected":
            self.connected.set()
        elif state in ("failed", "closed"):
            self.closed.set()


class _SentVoice(MediaStreamTrack):
    """Frames of the microphone to packets, in silence none; the microphone is the clock."""

    kind = "audio"

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._encoder = OpusEncoder()
        self._packets_out: deque[Packet[Any]] = deque()
        self._more = asyncio.Event()
        self._position = 0
        self._pausing = False
        self.sent = self.dropped = 0

    def put(self, frame: Samples48k) -> None:
        payload = self._encoder.encode(frame)
        packet: Packet[Any] = Packet(payload)
        packet.pts, packet.time_base = self._position, _TIME_BASE
        self._position += FRAME
        pausing, self._pausing = self._pausing, is_dtx(payload)
        if pausing and self._pausing:
            return  # the first of them says it all
        if len(self._packets_out) == MAX_WAITING_PACKETS:
            self._packets_out.popleft()
            self.dropped += 1
        self._packets_out.append(packet)
        self._more.set()

    def adapt(self, rate: Rate) -> None:
        self._encoder.set_bitrate(rate.bitrate)
        self._encoder.set_expected_loss(rate.expected_loss_percent)

    async def recv(self) -> Packet[Any]:
        while not self._packets_out:
            if self.readyState != "live":
                raise MediaStreamError
            self._more.clear()
            await self._more.wait()
        self.sent += 1
        return self._packets_out.popleft()

    def stop(self) -> None:
        super().stop()
        self._more.set()


class _HeardVoice:
    """Packets to frames of the speaker; stands where aiortc's receiver has its jitter buffer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # packets come in the loop, frames are asked for in the sound card's thread
        self._jitter = JitterBuffer()
        self._decoder = OpusDecoder()
        self._held: deque[Samples48k] = deque()
        self._n_held = 0
        self._held_lately: deque[int] = deque(maxlen=HELD_OVER)
        self._packets = self._bytes = 0
        self._quiet = True
        self._begun = False

    def add(self, packet: RtpPacket) -> tuple[bool, None]:
        """Takes a packet; the answer says that there is nothing for aiortc to decode or to ask again for."""
        with self._lock:
            self._packets += 1
            self._bytes += len(packet.payload)
            self._jitter.add(packet.sequence_number, packet.timestamp, packet.payload, time.monotonic())
        return False, None

    def frame(self, now_s: float) -> Samples48k:
        with self._lock:
            for event in self._jitter.take(now_s, self._quiet):
                self._decode(event)
            while self._n_held < FRAME:
                if not self._begun:
                    return np.zeros(FRAME, np.float32)
                self._hold(self._decoder.conceal())  # the card is ahead of the buffer's clock by part of a frame
            held = np.concatenate(self._held)
            frame, rest = held[:FRAME], held[FRAME:]
            self._held_lately.append(len(rest))
            spare = len(rest) - FRAME if len(rest) > MAX_HELD else self._held_in_vain if self._quiet else 0
            if spare:
                rest = rest[spare:]
                self._held_lately.clear()
            self._held, self._n_held = deque([rest]), len(rest)
            return frame

    @property
    def _held_in_vain(self) -> int:
        """Whole frames that have waited all the last second, in samples."""
        return min(self._held_lately) // FRAME * FRAME if len(self._held_lately) == HELD_OVER else 0

    def stats(self, rtt_ms: float | None, loss_out: float, sent: int, dropped: int) -> CallerStats:
        with self._lock:
            now = self._jitter.stats
            expected = now.received - now.late + now.lost
            return CallerStats(
                rtt_ms=rtt_ms,
                loss_out=loss_out,
                loss_in=now.lost / expected if expected else 0.0,
                jitter_ms=now.jitter_ms,
                jitter_buffer_ms=now.delay_ms,
                held_ms=self._n_held / RATE_HZ * 1000,
                received_packets=self._packets,
                received_bytes=self._bytes,
                sent_packets=sent,
                dropped_packets=dropped,
            )

    def _decode(self, event: Event) -> None:
        try:
            match event:
                case Due(payload):
                    self._hold(self._decoder.decode(payload))
                case Skip(payload):
                    self._decoder.decode(payload)
                case Lost(next_payload, samples):
                    self._hold(self._decoder.recover(next_payload or b"", samples))
                case Silence(samples) if self._begun:
                    self._hold(self._decoder.conceal(samples))
        except OpusError:
            if not isinstance(event, Skip):
                self._hold(self._decoder.conceal(event.samples))  # a damaged packet sounds like a lost one

    def _hold(self, samples: Samples48k) -> None:
        self._begun = True
        self._quiet = bool(np.abs(samples).max(initial=0.0) < QUIET)
        self._held.append(samples)
        self._n_held += len(samples)
