"""The calling side of a call, for clients that are no browser: frames of 20 ms go out, frames of 20 ms come in.

The sound card, real or not, is the clock: in each 20 ms it calls `say` with what the microphone gave and `hear` for
what the loudspeaker plays. Both may be called in a thread of the sound card's own.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from aiortc import MediaStreamTrack, RTCDtlsTransport, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtpPacket
from av.packet import Packet
from av.stream import Stream

from webrtc.ice import HANG_UP_S, IceServer, configuration
from webrtc.opus import FRAME, RATE_HZ, OpusEncoder, Samples48k
from webrtc.packets import PacketMaker
from webrtc.rate import Rate, RateControl
from webrtc.reports import SenderReports
from webrtc.sdp import with_opus_parameters
from webrtc.sound import PacketSound
from webrtc.tap import tap

MAX_WAITING_PACKETS = 10
"""200 ms of the microphone that the network has not taken; beyond it the oldest is dropped."""
MAX_HELD = 2 * FRAME
"""Decoded samples that may be left after a frame is played; with more, the sound card is slower than the network."""
HELD_OVER = 50
"""Frames, one second: sound that was held all that time is not needed, and is left out in the next quiet frame."""
QUIET = 0.003  # -50 dBFS


@dataclass(frozen=True)
class CallerStats:
    """How the network does, as this side sees it; None where nothing was reported yet."""

    rtt_ms: float | None
    loss_out: float
    """Share of our packets that the other side missed, by its last report."""
    loss_in: float
    """Share of the other side's packets that were not there when they were due, since the start."""
    jitter_ms: float
    jitter_buffer_ms: float
    held_ms: float
    """Sound that is decoded, but not played yet."""
    received_packets: int
    received_bytes: int
    """Opus payload only."""
    sent_packets: int
    dropped_packets: int


class Caller:
    """Our end of one media connection, on the side that offers; lives in the event loop that makes it."""

    def __init__(self, servers: Iterable[IceServer] = ()) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = RTCPeerConnection(configuration(servers))
        self._microphone = _Microphone(self._loop)
        self._loudspeaker = _Loudspeaker()
        self._rate = RateControl()
        self._reports = SenderReports()
        self.connected = asyncio.Event()
        self.closed = asyncio.Event()
        transceiver = self._connection.addTransceiver(self._microphone, direction="sendrecv")
        codecs = RTCRtpSender.getCapabilities("audio").codecs
        transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == "audio/opus"])
        self._sender, self._receiver = transceiver.sender, transceiver.receiver
        tap(self._receiver, self._loudspeaker.add)
        self._connection.on("connectionstatechange", self._follow)

    @property
    def transport(self) -> RTCDtlsTransport:
        """The transport of the sound, for measurements; there after `offer`."""
        return self._receiver.transport

    async def offer(self) -> str:
        """The offer, with all candidates in it."""
        await self._connection.setLocalDescription(await self._connection.createOffer())
        return with_opus_parameters(self._connection.localDescription.sdp)

    async def accept(self, answer: str) -> None:
        """Connects; sets `connected` or `closed` later. ValueError where the answer does not fit the offer."""
        await self._connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    def say(self, frame: Samples48k) -> None:
        """The next 20 ms of the microphone; never waits."""
        self._loop.call_soon_threadsafe(self._microphone.put, frame)

    def hear(self, now_s: float) -> Samples48k:
        """The 20 ms that are played next; `now_s` is on the monotonic clock, best without the card's jitter."""
        return self._loudspeaker.frame(now_s)

    async def follow(self) -> CallerStats:
        """What is known about the network. It also sets the bitrate by it: call it about once a second."""
        reports = self._reports
        if reports.read(await self._sender.getStats()):
            self._microphone.set_rate(self._rate.report(reports.loss, reports.rtt_ms, self._loop.time()))
        return self._loudspeaker.stats(reports.rtt_ms, reports.loss, self._microphone.sent, self._microphone.dropped)

    async def close(self) -> None:
        """Hangs up, and does not wait for a relay that no longer answers."""
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


class _Microphone(MediaStreamTrack):
    """Frames of the microphone to packets; the microphone is the clock."""

    kind = "audio"

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._packets = PacketMaker(OpusEncoder())
        self._unsent: deque[Packet[Stream]] = deque()
        self._more = asyncio.Event()
        self._tick = 0
        self.sent = self.dropped = 0

    def put(self, frame: Samples48k) -> None:
        packet = self._packets.make(frame, self._tick)
        self._tick += 1
        if packet is None:
            return
        if len(self._unsent) == MAX_WAITING_PACKETS:
            self._unsent.popleft()
            self.dropped += 1
        self._unsent.append(packet)
        self._more.set()

    def set_rate(self, rate: Rate) -> None:
        self._packets.set_rate(rate)

    async def recv(self) -> "Packet[Stream]":
        while not self._unsent:
            if self.readyState != "live":
                raise MediaStreamError
            self._more.clear()
            await self._more.wait()
        self.sent += 1
        return self._unsent.popleft()

    def stop(self) -> None:
        super().stop()
        self._more.set()


class _Loudspeaker:
    """Packets to frames of the loudspeaker, which is the clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # packets come in the loop, frames are asked for in the sound card's thread
        self._sound = PacketSound(lead_in=False)
        self._held: deque[Samples48k] = deque()
        self._n_held = 0
        self._held_lately: deque[int] = deque(maxlen=HELD_OVER)
        self._packets = self._bytes = 0
        self._quiet = True

    def add(self, packet: RtpPacket, arrival_s: float) -> None:
        with self._lock:
            self._packets += 1
            self._bytes += len(packet.payload)
            self._sound.add(packet, arrival_s)

    def frame(self, now_s: float) -> Samples48k:
        with self._lock:
            for sound in self._sound.take(now_s, self._quiet):
                self._hold(sound)
            while self._n_held < FRAME:
                if not self._sound.begun:
                    return np.zeros(FRAME, np.float32)
                self._hold(self._sound.guess())  # the card is ahead of the buffer's clock by part of a frame
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
            now = self._sound.stats
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

    def _hold(self, sound: Samples48k) -> None:
        self._quiet = bool(np.abs(sound).max(initial=0.0) < QUIET)
        self._held.append(sound)
        self._n_held += len(sound)
