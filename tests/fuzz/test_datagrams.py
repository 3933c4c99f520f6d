"""Packets of any shape into the receiving side of a live call, the client's own and others': the call goes on."""

import asyncio
import struct
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import pylibsrtp
import pytest
from aiortc.rtcsctptransport import serialize_packet
from aiortc.rtp import RtcpByePacket, RtcpPsfbPacket, RtcpRtpfbPacket, RtcpSdesPacket, RtpPacket
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.budget import MORE_S, SECONDS
from tests.webrtc.clients import until
from tests.webrtc.test_guard import address_of, talking
from tests.webrtc.test_peer import a_socket

LIMIT_S = 30.0

small, large = st.integers(0, 255), st.integers(0, 2**32 - 1)
short = st.binary(max_size=40)


@dataclass(frozen=True)
class Sent:
    """One packet and how it goes: `rtp` and `data` are encrypted as the client's, the others are not."""

    how: str
    data: bytes


@st.composite
def rtp(draw: st.DrawFn) -> bytes:
    """A packet of sound, or nearly."""
    packet = RtpPacket(
        payload_type=draw(st.sampled_from([96, 96, 96, 0, 72, 127])),
        sequence_number=draw(st.integers(0, 65535)),
        timestamp=draw(large),
        ssrc=draw(large | st.just(1)),
        payload=draw(short),
    ).serialize()
    head = draw(st.sampled_from([0x80, 0x90, 0xA0, 0xB0, 0x8F, 0x9F]))  # with extension, padding, contributing sources
    extension = draw(
        st.sampled_from(
            [b"", b"\xbe\xde\x00\x01\x10a\x21\x00", b"\xbe\xde\x00\x01\x21ab\x00", b"\x10\x00\x00\x01\x02\x02ab"]
        )
    )
    return bytes([head]) + packet[1:12] + extension + packet[12:]


@st.composite
def rtcp(draw: st.DrawFn) -> bytes:
    """A compound of reports, as they should be or with any content."""
    body = st.tuples(st.integers(0, 31), st.integers(200, 207), st.binary(max_size=15).map(lambda part: part * 4))
    parts = [
        st.just(bytes(RtcpByePacket([1]))),
        st.just(bytes(RtcpSdesPacket())),
        st.builds(
            lambda fmt, fci: bytes(RtcpPsfbPacket(fmt, 1, 0, fci)), st.integers(1, 15), st.just(b"REMB\xff\x00\x00\x00")
        ),
        st.builds(
            lambda lost: bytes(RtcpRtpfbPacket(1, 1, 1, lost)),
            st.lists(st.integers(0, 65535), min_size=1, max_size=9, unique=True).map(sorted),
        ),
        body.map(lambda part: struct.pack("!BBH", 0x80 | part[0], part[1], len(part[2]) // 4) + part[2]),
    ]
    return b"".join(draw(st.lists(st.one_of(parts), min_size=1, max_size=4)))[:1400]


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """Chunks of the data channel; their association's tag is put in when they are sent."""
    found = b""
    for _ in range(draw(st.integers(1, 4))):
        body = draw(short)
        length = draw(st.just(len(body) + 4) | st.integers(0, 65535))
        found += struct.pack("!BBH", draw(st.integers(0, 15) | st.sampled_from([130, 192])), draw(small), length) + body
        found += b"\x00" * (-len(body) % 4)
    return found


sent = st.one_of(
    rtp().map(lambda data: Sent("rtp", data)),
    rtcp().map(lambda data: Sent("rtp", data)),
    chunks().map(lambda data: Sent("data", data)),
    st.binary(max_size=200).map(lambda data: Sent("client", data)),
    st.binary(max_size=200).map(lambda data: Sent("stranger", data)),
    st.builds(lambda first, rest: Sent("client", bytes([first]) + rest), small, st.binary(min_size=12, max_size=60)),
)


# Each example is a whole call: rounds are short, and what fails is told as it is, as making it shorter takes minutes.
@settings(
    max_examples=8,
    derandomize=not SECONDS,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(sent, min_size=20, max_size=60))
def one_round(packets: list[Sent]) -> None:
    asyncio.run(outlive(packets))


@pytest.mark.timeout(SECONDS + MORE_S)
def test_a_call_outlives_any_packets() -> None:
    end_s = time.monotonic() + SECONDS
    one_round()
    while time.monotonic() < end_s:
        one_round()


async def outlive(packets: list[Sent]) -> None:
    async with asyncio.timeout(LIMIT_S), talking() as call:
        await call.open_channel()
        dtls = call.client.transceiver.sender.transport
        (pair,) = dtls.transport._connection._nominated.values()
        at, sctp = address_of(call.peer._connection), call.client.connection.sctp
        assert sctp is not None
        with closing(a_socket(at[0])) as stranger:
            for packet in packets:
                match packet.how:
                    case "rtp":
                        with suppress(pylibsrtp.Error):  # nothing that can be encrypted
                            await dtls._send_rtp(packet.data)
                    case "data":
                        await dtls._send_data(with_tag(sctp, packet.data))
                    case "client":
                        pair.protocol.transport.sendto(packet.data, pair.remote_addr)
                    case "stranger":
                        stranger.sendto(packet.data, at)
                await asyncio.sleep(0)
        heard = len(call.frames)
        await until(lambda: len(call.frames) > heard + 5, "frames still come")
        assert not call.peer.closed.is_set()
        receiver: Any = call.peer._connection.getTransceivers()[0].receiver
        assert not receiver._RTCRtpReceiver__rtcp_task.done()


def with_tag(sctp: Any, chunk: bytes) -> bytes:
    """A packet of the client's association."""
    ports = sctp._local_port, sctp._remote_port
    return serialize_packet(*ports, sctp._remote_verification_tag, chunk)  # type: ignore[arg-type]  # bytes will do
