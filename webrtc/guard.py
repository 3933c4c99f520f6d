"""Stands between the network and aiortc: drops what is no part of a call, and what is more than a call needs.

aioice hands on any datagram that is not STUN, whoever sent it, and aiortc then takes it for the client's: an empty one
ends the call. What the client itself sends has no bounds there: each new source is kept for good, each packet costs
the same, and some that are malformed end the call as well.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from aioice import Connection, stun
from aioice.ice import CandidatePair, StunProtocol
from aiortc import RTCDtlsTransport, RTCRtpReceiver, RTCRtpSender, RTCSctpTransport
from aiortc.rtcsctptransport import Chunk, DataChunk, InboundStream, SackChunk
from aiortc.rtp import AnyRtcpPacket, RtcpRtpfbPacket, is_rtcp

from webrtc.candidates import Reach

log = logging.getLogger("seedvc.media")

MAX_DATAGRAM = 1500  # bytes; pylibsrtp raises at longer ones, which would end the call
MAX_QUEUED = 512
"""Datagrams that aiortc has not taken yet."""
MAX_SOURCES = 8
"""Streams of packets (SSRC) of one client: a change of microphone makes a new one."""
MAX_ADDRESSES = 16
"""Addresses that a client reaches us from: its network may change, and each is checked."""
MAX_CHECKS = 100
"""Connectivity checks sent to addresses that have not answered or asked with our password yet."""
MAX_STREAMS = 16
"""Of data channels; the page opens one."""
WINDOW_BYTES = 262144
"""What a client may send on its data channels before it is read."""
MAX_GAPS = 4096
"""Packets that one report of the data channel names as received."""


@dataclass(slots=True)
class GuardCounts:
    """What was left out, in datagrams, or parts of them on data channels."""

    strangers: int = 0
    """From addresses that are not the client's."""
    malformed: int = 0
    """Neither STUN, DTLS nor RTP, or broken."""
    flooded: int = 0
    """More than a call needs."""

    @property
    def all(self) -> int:
        return self.strangers + self.malformed + self.flooded


class Allowance:
    """So many a second; unused ones add up to at most `burst`. Pure: time is an argument."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at_s = float(burst), 0.0

    def take(self, now_s: float) -> bool:
        """Uses one up; False where none is left."""
        self._left = min(self._burst, self._left + self._per_s * max(0.0, now_s - self._at_s))
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Guard:
    """Guards one peer. `before_gathering` comes before its candidates are gathered, `after_gathering` right after."""

    def __init__(self, reach: Reach, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = GuardCounts()
        self._reach, self._clock = reach, clock
        # The client's: Opus makes 50 packets a second, at most 400; after a stall, seconds of them come at once.
        self._sound = Allowance(400, 800)
        self._control = Allowance(50, 100)
        self._secure = Allowance(300, 600)
        self._checks = Allowance(100, 200)
        self._chunks = Allowance(400, 800)
        self._askers, self._newcomers = Allowance(50, 100), Allowance(50, 100)
        self._checks_left = MAX_CHECKS
        self._addresses: set[tuple[str, int]] = set()
        """Addresses whose owner knows our password."""
        self._sources: set[bytes] = set()
        """SSRCs whose packets were the client's."""

    def before_gathering(self, connection: Connection) -> None:
        """Lets only STUN through until the sockets are guarded."""
        connection.data_received = self._turn_away  # type: ignore[method-assign]

    def after_gathering(self, connection: Connection) -> None:
        """Guards the sockets, before anything else runs that could read from them."""
        for protocol in connection._protocols:
            self._guard_socket(connection, protocol)

    def guard_dtls(self, transport: RTCDtlsTransport) -> None:
        """Keeps the client's own packets within bounds once they are decrypted."""
        take_next, take_rtp, take_rtcp = transport._recv_next, transport._handle_rtp_data, transport._handle_rtcp_data
        ice = transport.transport
        take = ice._recv

        async def known() -> bytes:
            while self._is_one_source_more(data := await take()):
                self.counts.flooded += 1
            return data

        async def rtp(data: bytes, arrival_time_ms: int) -> None:
            self._sources.add(data[8:12])
            await take_rtp(data, arrival_time_ms=arrival_time_ms)

        async def rtcp(data: bytes) -> None:
            self._sources.add(data[4:8])
            await take_rtcp(data)

        ice._recv = known
        transport._handle_rtp_data, transport._handle_rtcp_data = rtp, rtcp  # type: ignore[method-assign]
        transport._recv_next = self._tolerant(take_next)  # type: ignore[method-assign]

    def guard_media(self, receiver: RTCRtpReceiver, sender: RTCRtpSender) -> None:
        """Keeps our reports going whatever the client's time stamps are; ignores its requests to send packets again."""
        take_rtcp = sender._handle_rtcp_packet

        async def rtcp(packet: AnyRtcpPacket) -> None:
            if not isinstance(packet, RtcpRtpfbPacket):  # one may ask for thousands of packets; no answer offers it
                await take_rtcp(packet)

        receiver._send_rtcp = self._tolerant(receiver._send_rtcp)  # type: ignore[method-assign]
        sender._handle_rtcp_packet = rtcp  # type: ignore[method-assign]

    def guard_data(self, sctp: RTCSctpTransport) -> None:
        """Keeps what comes on data channels within bounds."""
        take_chunk, take_data, take_sack = sctp._receive_chunk, sctp._receive_data_chunk, sctp._receive_sack_chunk
        stream_of = sctp._get_inbound_stream
        sctp._advertised_rwnd = WINDOW_BYTES
        sctp._inbound_streams_max = MAX_STREAMS

        async def chunk(chunk: Chunk) -> None:
            if self._chunks.take(self._clock()):
                await take_chunk(chunk)
            else:
                self.counts.flooded += 1

        async def data(chunk: DataChunk) -> None:
            if len(chunk.user_data) > sctp._advertised_rwnd or len(sctp._sack_misordered) > MAX_QUEUED:
                self.counts.flooded += 1
            else:
                await take_data(chunk)

        async def sack(chunk: SackChunk) -> None:
            if sum(last - first + 1 for first, last in chunk.gaps) > MAX_GAPS:
                self.counts.malformed += 1
            else:
                await take_sack(chunk)

        def stream(stream_id: int) -> InboundStream:
            if stream_id not in sctp._inbound_streams and len(sctp._inbound_streams) == MAX_STREAMS:
                raise ValueError(f"stream {stream_id} is one more than {MAX_STREAMS}")
            return stream_of(stream_id)

        sctp._receive_chunk, sctp._receive_data_chunk = chunk, data  # type: ignore[method-assign]
        sctp._receive_sack_chunk, sctp._get_inbound_stream = sack, stream  # type: ignore[method-assign]

    def _tolerant(self, handle: Callable[..., Awaitable[None]]) -> Callable[..., Coroutine[Any, Any, None]]:
        """Drops and counts what `handle` fails on: aiortc would end the call, or stop reporting."""

        async def handled(*args: Any, **kwargs: Any) -> None:
            try:
                await handle(*args, **kwargs)
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception:
                self.counts.malformed += 1
                log.debug("a packet of the client could not be handled", exc_info=True)

        return handled

    def _guard_socket(self, connection: Connection, protocol: StunProtocol) -> None:
        take_stun, send_stun = protocol.datagram_received, protocol.send_stun

        def datagram_received(data: bytes | str, addr: tuple[Any, ...]) -> None:
            assert isinstance(data, bytes)
            address = (addr[0], addr[1])
            try:
                self._receive(data, address, connection, protocol, take_stun)
            except Exception:  # aioice's parser raises more than it knows of
                self.counts.malformed += 1
                log.debug("a datagram could not be read", exc_info=True)

        def send(message: stun.Message, addr: tuple[str, int]) -> None:
            if self._may_send(message, addr, connection):
                send_stun(message, addr)

        protocol.datagram_received = datagram_received  # type: ignore[method-assign]
        protocol.send_stun = send  # type: ignore[method-assign]

    def _turn_away(self, data: bytes, component: int) -> None:
        self.counts.malformed += 1

    def _receive(
        self,
        data: bytes,
        address: tuple[str, int],
        connection: Connection,
        protocol: StunProtocol,
        take_stun: Callable[[bytes, tuple[str, int]], None],
    ) -> None:
        """Sorts a datagram by its first byte (RFC 7983), and hands on what is the client's."""
        now_s, first = self._clock(), data[0] if data else -1
        is_stun = 0 <= first < 4
        if not (address in self._addresses or self._joins(data, is_stun, address, connection, protocol, now_s)):
            self.counts.strangers += 1
        elif is_stun:
            if self._allowed(self._checks, now_s):
                take_stun(data, address)
        elif len(data) > MAX_DATAGRAM or not (_is_dtls(data) or _is_rtp(data)):
            self.counts.malformed += 1
        elif self._allowed(self._of(data), now_s):
            if connection._queue.qsize() < MAX_QUEUED:
                connection._queue.put_nowait((data, 1))
            else:
                self.counts.flooded += 1

    def _joins(
        self,
        data: bytes,
        is_stun: bool,
        address: tuple[str, int],
        connection: Connection,
        protocol: StunProtocol,
        now_s: float,
    ) -> bool:
        """Whether a datagram from a new address may be the client's; looks at few, since anybody can send many."""
        if len(self._addresses) >= MAX_ADDRESSES or not data:
            return False
        if not is_stun:
            return self._newcomers.take(now_s) and self._is_clients(address, connection)
        is_ours = data[8:20] in protocol.transactions or f"{connection.local_username}:".encode() in data
        return is_ours and self._reach.allows(address[0]) and self._askers.take(now_s)

    def _of(self, data: bytes) -> Allowance:
        if data[0] < 128:
            return self._secure
        return self._control if is_rtcp(data) else self._sound

    def _allowed(self, allowance: Allowance, now_s: float) -> bool:
        allowed = allowance.take(now_s)
        self.counts.flooded += not allowed
        return allowed

    def _is_one_source_more(self, data: bytes) -> bool:
        """Whether it is RTP of a new source beyond the bound; only sources of packets that could be decrypted count."""
        if not _is_rtp(data):
            return False
        source = data[4:8] if is_rtcp(data) else data[8:12]
        return source not in self._sources and len(self._sources) >= MAX_SOURCES

    def _is_clients(self, address: tuple[str, int], connection: Connection) -> bool:
        """Whether this address has shown that it knows a password of this call."""
        if address in self._addresses:
            return True
        if any(
            pair.state is CandidatePair.State.SUCCEEDED and pair.remote_addr == address
            for pair in connection._check_list
        ):
            self._addresses.add(address)
            return True
        return False

    def _may_send(self, message: stun.Message, address: tuple[str, int], connection: Connection) -> bool:
        """Whether a message may be sent; few may go to addresses that are only named: they may be somebody else's."""
        if message.message_class is stun.Class.RESPONSE:  # the request knew our password
            self._addresses.add(address)
        if message.message_class is not stun.Class.REQUEST or self._is_clients(address, connection):
            return True
        self._checks_left -= 1
        return self._checks_left >= 0


def _is_dtls(data: bytes) -> bool:
    """Whether it is DTLS; data is a single record, since aiortc reads one per datagram and OpenSSL keeps the rest."""
    if len(data) < 13 or not 19 < data[0] < 64:
        return False
    return data[0] != 23 or int.from_bytes(data[11:13], "big") == len(data) - 13


def _is_rtp(data: bytes) -> bool:
    return len(data) >= 12 and 127 < data[0] < 192
