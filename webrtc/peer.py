"""Our end of one media connection: the client's speech comes in as frames, blocks go out to it, messages both ways."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from aioice import Connection as IceConnection
from aiortc import RTCDataChannel, RTCIceCandidate, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.rtcrtptransceiver import RTCRtpTransceiver
from aiortc.stats import RTCStatsReport, RTCTransportStats
from numpy.typing import NDArray

from webrtc.candidates import MAX_CANDIDATES, Reach, read_candidate
from webrtc.guard import Allowance, Guard
from webrtc.ice import HANG_UP_S, IceServer, configuration
from webrtc.opus import OpusEncoder
from webrtc.playout import Playout
from webrtc.rate import RateControl
from webrtc.receive import AudioReceiver
from webrtc.reports import SenderReports
from webrtc.sdp import OPUS, Direction, Offer, OfferError, complete_answer, read_offer
from webrtc.send import SendTrack

log = logging.getLogger("seedvc.media")

Samples = NDArray[np.float32]  # (T,) mono, full scale at 1

CHANNEL = "control"
MAX_MESSAGE = 65536  # characters
MAX_UNSENT_BYTES = 262144
"""Messages that the network has not taken; beyond it new ones are dropped."""
MESSAGES_PER_S, MESSAGES_AT_ONCE = 20, 100
"""How many messages a client may send on the data channel; more are left out."""
MEASURE_EVERY_S = 1.0
CONNECT_TIMEOUT_S = 20.0
LOST_AFTER_S = 15.0
"""How long nothing may come in. Browsers that only listen still report each 5 s; ICE alone would take 30 s to tell."""
CONNECT_WAKES_S = 0.06


@dataclass(frozen=True, slots=True)
class PeerStats:
    """How the connection does, over the last second unless a field says otherwise."""

    rtt_ms: float | None = None
    """Round trip by the client's reports, smoothed; None: not measured yet."""
    loss_in: float = 0.0
    """Share of the client's packets that were not there when they were due."""
    loss_out: float = 0.0
    """Share of our packets that the client missed, by its last report."""
    packets_lost: int = 0
    """Of the client's, since the start."""
    jitter_ms: float = 0.0
    jitter_buffer_ms: float = 0.0
    playout_ms: float = 0.0
    """How long converted sound waits before it is sent."""
    bitrate_in_bps: float = 0.0
    """RTP, RTCP and data as received, without UDP and IP."""
    bitrate_out_bps: float = 0.0
    """Opus payload."""
    target_bps: int = 0
    """What the encoder aims at."""
    bridged: int = 0
    """How often converted sound came late and had to be bridged, since the start."""
    messages_dropped: int = 0
    left_out: int = 0
    """Datagrams of strangers, malformed ones, and more than a call needs, messages included; since the start."""


class Peer:
    """Answers one offer; lives in the event loop that makes it. `closed` is set at the end; `reason` says why it ended,
    and `failed` whether an error of this side ended it.

    Args:
        ice_servers: STUN and TURN servers that this side itself uses; mostly none.
        on_frame: called each 20 ms with 320 samples of the client at 16 kHz, silence included, from the answer on.
        on_message: called with each text that the client sends on the data channel `control`.
        direction: what this side is willing to do; the offer may ask for less.
        reach: which addresses packets are sent to; by default all but this machine's own and unusable ones.
    """

    def __init__(
        self,
        ice_servers: Iterable[IceServer],
        *,
        on_frame: Callable[[Samples], None],
        on_message: Callable[[str], None] | None = None,
        direction: Direction = "sendrecv",
        reach: Reach = Reach(),  # noqa: B008 - frozen
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        lost_after_s: float = LOST_AFTER_S,
        measure_every_s: float = MEASURE_EVERY_S,
    ) -> None:
        self.direction: Direction = direction
        self.connected = asyncio.Event()
        self.closed = asyncio.Event()
        self.reason: str | None = None
        self.failed = False
        self._on_message = on_message
        self._connect_timeout_s, self._lost_after_s = connect_timeout_s, lost_after_s
        self._measure_every_s = measure_every_s
        self._playout = Playout()
        self._track = SendTrack(self._playout, OpusEncoder(), self._fail)
        self._receiver = AudioReceiver(on_frame, self._fail)
        self._rate = RateControl()
        self._reports = SenderReports()
        self._stats = PeerStats()
        self._seen = _Seen()
        self._channel: RTCDataChannel | None = None
        self._messages_dropped = 0
        self._reach, self._guard = reach, Guard(reach)
        self._messages_allowed = Allowance(MESSAGES_PER_S, MESSAGES_AT_ONCE)
        self._messages_left_out = 0
        self._candidates: asyncio.Queue[tuple[RTCIceCandidate, Mapping[str, Any] | int]] = asyncio.Queue(MAX_CANDIDATES)
        self._n_candidates = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._negotiation: asyncio.Task[str] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._connection = RTCPeerConnection(configuration(ice_servers))
        self._connection.on("connectionstatechange", self._follow_state)
        self._connection.on("datachannel", self._adopt)

    async def answer(self, given: Offer | str) -> str:
        """The answer to an offer, read or as text, with all candidates of this side in it.

        Raises:
            OfferError: the offer cannot be answered; the peer is closed then.
            ConnectionError: the peer was closed meanwhile.
        """
        try:
            offer = read_offer(given, self.direction) if isinstance(given, str) else given
            self.direction = offer.direction
            self._negotiation = asyncio.create_task(self._negotiate(offer))
            return await asyncio.shield(self._negotiation)
        except BaseException:
            await self.close()
            raise

    def add_candidate(self, candidate: Mapping[str, Any] | None) -> None:
        """One more address of the client, in the form browsers have; used in the order of the calls.

        None and the empty candidate mark the end, and change nothing: aioice would then report failure where no known
        candidate works, though it may yet learn of one from the client's own checks. Candidates that cannot be read or
        reached, and more than 64, are left out: each costs connectivity checks.
        """
        if line := str((candidate or {}).get("candidate") or ""):
            self._add_candidate(line, candidate or {})

    def _add_candidate(self, line: str, place: Mapping[str, Any] | int) -> None:
        candidate = read_candidate(line, self._reach)
        if candidate is None or self._n_candidates == MAX_CANDIDATES:
            log.debug("candidate left out")
            return
        self._n_candidates += 1
        self._candidates.put_nowait((candidate, place))

    def play(self, samples: Samples) -> None:
        """Sends sound at 22.05 kHz; never waits."""
        if self.connected.is_set():
            self._track.play(samples)

    def send_message(self, message: Mapping[str, Any]) -> None:
        """Sends a message on the client's data channel; dropped and counted where there is none, or it is stuck."""
        channel = self._channel
        if channel is None or channel.readyState != "open" or channel.bufferedAmount > MAX_UNSENT_BYTES:
            self._messages_dropped += 1
            return
        channel.send(json.dumps(message, separators=(",", ":")))

    def stats(self) -> PeerStats:
        """As measured last, once a second."""
        return self._stats

    async def close(self) -> None:
        """Hangs up, and frees sockets, tasks and codecs; more than once does no harm."""
        await asyncio.shield(self._close_because("this side hung up"))

    def _close_because(self, reason: str) -> asyncio.Task[None]:
        if self._closing is None:
            self.reason = reason
            self._closing = asyncio.create_task(self._free())
        return self._closing

    async def _free(self) -> None:
        if self._negotiation is not None:
            # aiortc closes only what exists: sockets that it opens afterwards would stay open
            await asyncio.wait([self._negotiation], timeout=HANG_UP_S)
            self._negotiation.cancel()
            await asyncio.gather(self._negotiation, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._receiver.close()
        self._track.stop()
        try:
            async with asyncio.timeout(HANG_UP_S):
                await self._hang_up()
        except Exception:
            log.warning("the connection did not close in order", exc_info=True)
        self._channel = None
        self._playout.clear()
        self.closed.set()

    async def _hang_up(self) -> None:
        transports = {transceiver.receiver.transport.transport for transceiver in self._connection.getTransceivers()}
        checking = [transport for transport in transports if transport.state == "checking"]
        await self._connection.close()
        if checking:
            # aioice's connect() wakes each 20 ms; where it has just succeeded, it begins to ask for consent on what is
            # closed by now, and would go on for half a minute.
            await asyncio.sleep(CONNECT_WAKES_S)
            for transport in checking:
                await transport._connection.close()

    async def _negotiate(self, offer: Offer) -> str:
        connection = self._connection
        sends, receives = offer.direction != "recvonly", offer.direction != "sendonly"
        transceiver = connection.addTransceiver(self._track if sends else "audio", direction=offer.direction)
        codecs = RTCRtpSender.getCapabilities("audio").codecs
        transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == OPUS])
        if sends:
            self._rate = RateControl(offer.max_bps)
            self._track.set_rate(self._rate.rate)
        try:
            await connection.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
        except Exception as error:
            raise OfferError("the offer is not one that a WebRTC audio call can be made of") from error
        if receives:
            self._receiver.attach(transceiver.receiver)
        sockets = self._guarded(transceiver)
        await connection.setLocalDescription(await connection.createAnswer())
        for ice in sockets:
            self._guard.after_gathering(ice)
        if self._closing is not None:
            raise ConnectionError("the peer was closed while it answered")
        for line, index in offer.candidates:
            self._add_candidate(line, index)
        self._start(self._pass_candidates(offer), "candidates")
        self._start(self._watch(transceiver), "watch")
        return complete_answer(connection.localDescription.sdp, offer)

    def _guarded(self, transceiver: RTCRtpTransceiver) -> list[IceConnection]:
        """Puts the guard before all that aiortc has made; returns its ICE connections, which have no sockets yet."""
        transports = {transceiver.receiver.transport}
        self._guard.guard_media(transceiver.receiver, transceiver.sender)
        if self._connection.sctp is not None:
            transports.add(self._connection.sctp.transport)
            self._guard.guard_data(self._connection.sctp)
        for transport in transports:
            self._guard.guard_dtls(transport)
            self._guard.before_gathering(transport.transport._connection)
        return [transport.transport._connection for transport in transports]

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=f"peer-{name}")
        task.add_done_callback(self._follow_task)
        self._tasks.append(task)

    def _follow_task(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Hangs up where a part has died; the call would go on in silence."""
        log.error("a part of a peer has failed", exc_info=error)
        if self._closing is None:
            self.failed = True
            self._close_because("something failed on this side")

    async def _pass_candidates(self, offer: Offer) -> None:
        """Hands candidates to aiortc in order."""
        while True:
            candidate, place = await self._candidates.get()
            section = (
                place if isinstance(place, int) else offer.carrier(place.get("sdpMid"), place.get("sdpMLineIndex"))
            )
            if section is None:
                log.debug("candidate of a rejected section left out")
                continue
            candidate.sdpMLineIndex = section
            await self._connection.addIceCandidate(candidate)

    async def _watch(self, transceiver: RTCRtpTransceiver) -> None:
        """Hangs up where the connection does not come about or goes quiet; measures one that works."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self.connected.wait()
        except TimeoutError:
            self._close_because(f"no media connection came about within {self._connect_timeout_s:g} s")
            return
        now = asyncio.get_running_loop().time
        heard_s = now()
        while True:
            await asyncio.sleep(self._measure_every_s)
            if self._measure(await transceiver.sender.getStats(), now()):
                heard_s = now()
            elif now() - heard_s >= self._lost_after_s:
                self._close_because(f"nothing came from the client for {self._lost_after_s:g} s")
                return

    def _measure(self, stats: RTCStatsReport, now_s: float) -> bool:
        """Renews the statistics and the bitrate; tells whether anything came from the client since the last time."""
        before, seen, reports = self._seen, _Seen(now_s), self._reports
        for entry in stats.values():
            if isinstance(entry, RTCTransportStats):
                seen.bytes_in = entry.bytesReceived
        if reports.read(stats):
            self._track.set_rate(self._rate.report(reports.loss, reports.rtt_ms, now_s))
        network = self._receiver.stats()
        seen.lost, seen.in_time = network.lost, network.received - network.late
        seen.bytes_out = self._track.counts.payload_bytes
        lost, due = seen.lost - before.lost, seen.lost - before.lost + seen.in_time - before.in_time
        seconds = max(now_s - before.at_s, 1e-3)
        self._stats = PeerStats(
            rtt_ms=reports.rtt_ms,
            loss_in=lost / due if due > 0 else 0.0,
            loss_out=reports.loss,
            packets_lost=network.lost,
            jitter_ms=network.jitter_ms,
            jitter_buffer_ms=network.delay_ms,
            playout_ms=self._playout.delay_ms,
            bitrate_in_bps=8 * (seen.bytes_in - before.bytes_in) / seconds if before.at_s else 0.0,
            bitrate_out_bps=8 * (seen.bytes_out - before.bytes_out) / seconds if before.at_s else 0.0,
            target_bps=self._rate.rate.bitrate if self.direction != "recvonly" else 0,
            bridged=self._playout.counts.bridged,
            messages_dropped=self._messages_dropped,
            left_out=self._guard.counts.all + self._messages_left_out,
        )
        self._seen = seen
        return seen.bytes_in > before.bytes_in

    def _follow_state(self) -> None:
        match self._connection.connectionState:
            case "connected":
                self.connected.set()
            case "failed":
                self._close_because("the media connection failed")
            case "closed":
                self._close_because("the client hung up")

    def _adopt(self, channel: RTCDataChannel) -> None:
        """Keeps the client's channel for messages; closes a second one and those of another name."""
        if channel.label != CHANNEL or self._channel is not None:
            channel.close()
            return
        self._channel = channel
        channel.on("message", self._hear)
        channel.on("close", self._forget_channel)

    def _forget_channel(self) -> None:
        self._channel = None

    def _hear(self, message: str | bytes) -> None:
        if not self._messages_allowed.take(asyncio.get_running_loop().time()):
            self._messages_left_out += 1
            return
        if not isinstance(message, str) or len(message) > MAX_MESSAGE:
            wrong = f"a message is text of at most {MAX_MESSAGE} characters"
            self.send_message({"type": "error", "code": "invalid_message", "message": wrong})
        elif self._on_message is not None:
            try:
                self._on_message(message)
            except Exception:
                # The transport would take the error for the end of the connection.
                log.exception("a message could not be handled")


@dataclass(slots=True)
class _Seen:
    """Counters at one measurement; the next one takes differences from them."""

    at_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    lost: int = 0
    in_time: int = 0
