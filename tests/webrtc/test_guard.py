"""What strangers and floods do to a call: nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.rtcsctptransport import SackChunk
from aiortc.rtp import RtcpReceiverInfo, RtcpRrPacket, RtcpRtpfbPacket, RtpPacket

from tests.webrtc.clients import Client, until
from tests.webrtc.test_peer import Call, a_socket, calling, host, loud, no_task_outlives_its_call
from webrtc.guard import MAX_ADDRESSES, MAX_CHECKS, MAX_SOURCES, MAX_STREAMS, Allowance
from webrtc.peer import MESSAGES_AT_ONCE

__all__ = ["no_task_outlives_its_call"]

RUBBISH = [
    b"",
    b"\x00",
    b"\x00\x01\x00\x00",
    b"\x00\x01\x00\x08\x21\x12\xa4\x42" + b"t" * 12 + b"\x00\x24\x00\x02\x00\x01\x00\x00",  # STUN, PRIORITY too short
    b"\x16\xfe\xff" + b"\x00" * 60,
    b"\x17\xfe\xfd" + b"\x00" * 60,
    b"\x80" + b"\x00" * 40,
    b"\x80\xc8" + b"\x00" * 40,
    b"\x80" + b"\xff" * 1600,
    b"\xff" * 1200,
    b"\x50" * 20,
]


def address_of(peer_connection: RTCPeerConnection) -> tuple[str, int]:
    """Where one side receives."""
    transport = peer_connection.getTransceivers()[0].receiver.transport.transport
    (pair,) = transport._connection._nominated.values()
    return pair.local_addr


def receiver_of(call: Call) -> Any:
    """aiortc's, whose insides are looked at."""
    return call.peer._connection.getTransceivers()[0].receiver


def send(data: bytes, to: tuple[str, int], times: int = 1) -> None:
    with closing(a_socket(to[0])) as stranger:
        for _ in range(times):
            stranger.sendto(data, to)


async def keeps_on(call: Call) -> None:
    """Waits until the call has gone on for a while."""
    heard = len(call.frames)
    await until(lambda: len(call.frames) > heard + 25 and loud(call.frames[-5:]), "still heard")
    assert not call.peer.closed.is_set()


@asynccontextmanager
async def talking(client: Client | None = None, **options: Any) -> AsyncIterator[Call]:
    async with calling(client, **options) as call:
        await call.begin()
        await until(lambda: loud(call.frames), "heard")
        yield call


async def test_bare_aiortc_still_ends_at_an_empty_datagram__else_simplify_webrtc_guard() -> None:
    """Where this fails, the libraries have mended it: Guard need not look at who sends what any more."""
    here, there = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
    try:
        here.createDataChannel("control")
        await here.setLocalDescription(await here.createOffer())
        await there.setRemoteDescription(RTCSessionDescription(here.localDescription.sdp, "offer"))
        await there.setLocalDescription(await there.createAnswer())
        await here.setRemoteDescription(RTCSessionDescription(there.localDescription.sdp, "answer"))
        await until(lambda: there.connectionState == here.connectionState == "connected", "connected")
        assert there.sctp is not None
        (pair,) = there.sctp.transport.transport._connection._nominated.values()
        send(b"", pair.local_addr)
        await until(lambda: there.connectionState == "closed", "the connection ended", 5)
    finally:
        await asyncio.gather(here.close(), there.close())


async def test_datagrams_of_strangers_change_nothing() -> None:
    async with talking() as call:
        at = address_of(call.peer._connection)
        for data in RUBBISH:
            send(data, at, times=20)
        await keeps_on(call)
        await until(lambda: call.peer.stats().left_out >= 20 * len(RUBBISH), "counted")


async def test_datagrams_of_strangers_before_the_call_is_up_change_nothing() -> None:
    async with calling() as call:
        answer = await call.peer.answer(await call.client.offer())
        transport = call.peer._connection.getTransceivers()[0].receiver.transport.transport
        for protocol in transport._connection._protocols:
            for data in RUBBISH if ":" not in protocol.local_candidate.host else []:
                send(data, (protocol.local_candidate.host, protocol.local_candidate.port))
        await call.client.accept(answer)
        await until(lambda: loud(call.frames), "heard")


async def test_rubbish_from_the_clients_own_address_changes_nothing() -> None:
    async with talking() as call:
        transport = call.client.transceiver.receiver.transport.transport
        (pair,) = transport._connection._nominated.values()
        for data in RUBBISH:
            pair.protocol.transport.sendto(data, pair.remote_addr)
        await keeps_on(call)


async def test_strangers_get_no_answer_to_their_checks() -> None:
    request = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + b"t" * 12
    async with talking() as call:
        at = address_of(call.peer._connection)
        with closing(a_socket(at[0])) as stranger:
            stranger.sendto(request, at)
            await keeps_on(call)
            with pytest.raises(BlockingIOError):
                stranger.recv(2048)


async def send_rtp(call: Call, **fields: Any) -> None:
    number = call.client.transceiver._codecs[0].payloadType
    assert number is not None
    packet = RtpPacket(payload_type=number, payload=b"\x78\x00", **fields)
    await call.client.transceiver.sender.transport._send_rtp(packet.serialize())


async def test_a_source_for_each_packet_fills_nothing() -> None:
    async with talking() as call:
        receiver = receiver_of(call)
        for ssrc in range(200):
            await send_rtp(call, ssrc=1000 + ssrc, sequence_number=7)
        await keeps_on(call)
        assert len(receiver._RTCRtpReceiver__remote_streams) <= MAX_SOURCES
        assert len(receiver.transport._rtp_router.ssrc_table) <= MAX_SOURCES
        await until(lambda: call.peer.stats().left_out > 100, "counted")
        assert not receiver._RTCRtpReceiver__rtcp_task.done()


async def test_a_flood_of_packets_is_thinned_out() -> None:
    async with talking() as call:
        receiver = receiver_of(call)
        handled = 0
        take = receiver._handle_rtp_packet

        async def count(packet: RtpPacket, arrival_time_ms: int) -> None:
            nonlocal handled
            handled += 1
            await take(packet, arrival_time_ms)

        receiver._handle_rtp_packet = count
        for number in range(3000):
            await send_rtp(call, ssrc=1000, sequence_number=number)
            await asyncio.sleep(0)  # so that the socket's buffer holds them
        await until(lambda: call.peer.stats().left_out > 500, "counted")
        assert handled < 2500
        await keeps_on(call)


async def test_a_client_that_asks_for_packets_again_gets_none() -> None:
    async with talking() as call:
        sender = call.peer._connection.getTransceivers()[0].sender
        lost = RtcpRtpfbPacket(fmt=1, ssrc=1, media_ssrc=sender._ssrc, lost=list(range(1, 200)))
        sent: list[int] = []
        sender._retransmit = sent.append  # type: ignore[assignment]
        await call.client.transceiver.sender.transport._send_rtp(bytes(lost))
        await keeps_on(call)
        assert not sent


async def test_reports_go_on_whatever_a_clients_clock_says() -> None:
    async with talking() as call:
        receiver = receiver_of(call)
        for number in range(150):
            await send_rtp(call, ssrc=77, sequence_number=number, timestamp=0xFFFFFFFF * (number % 2))
        streams = receiver._RTCRtpReceiver__remote_streams
        await until(lambda: 77 in streams, "counted")
        streams[77]._jitter_q4 = 1 << 40  # more than a report has room for
        await asyncio.sleep(1.6)  # a report is due
        assert not receiver._RTCRtpReceiver__rtcp_task.done()
        await keeps_on(call)


async def test_reports_that_make_no_sense_change_nothing() -> None:
    async with talking() as call:
        ssrc = call.peer._connection.getTransceivers()[0].sender._ssrc
        report = RtcpReceiverInfo(ssrc, 255, -1, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        remb = b"\x8f\xce\x00\x04" + b"\x00" * 8 + b"REMB\xff\x00\x00\x00"  # names 255 sources and has none
        for data in (bytes(RtcpRrPacket(1, [report] * 31)), remb):
            await call.client.transceiver.sender.transport._send_rtp(data)
        await keeps_on(call)
        await until(lambda: call.peer.stats().left_out > 0, "counted")


async def test_a_flood_of_messages_is_thinned_out() -> None:
    async with talking() as call:
        await call.open_channel()
        assert call.client.channel is not None
        for _ in range(1000):
            call.client.channel.send("{}")
        await until(lambda: call.peer.stats().left_out > 500, "counted")
        assert MESSAGES_AT_ONCE <= len(call.texts) < 500
        await keeps_on(call)


async def test_channels_without_number_are_not_kept() -> None:
    async with talking() as call:
        await call.open_channel()
        for _ in range(3 * MAX_STREAMS):
            call.client.open_channel("more")
        await until(lambda: call.peer.stats().left_out > 0, "counted")
        await keeps_on(call)
        assert call.peer._connection.sctp is not None
        assert len(call.peer._connection.sctp._inbound_streams) <= MAX_STREAMS


async def test_a_report_of_the_data_channel_names_no_more_than_there_is() -> None:
    async with talking() as call:
        await call.open_channel()
        theirs, ours = call.client.connection.sctp, call.peer._connection.sctp
        assert theirs is not None and ours is not None
        chunk = SackChunk()
        chunk.cumulative_tsn, chunk.gaps = ours._last_sacked_tsn, [(0, 65535)] * 250
        await theirs._send_chunk(chunk)
        await keeps_on(call)
        await until(lambda: call.peer.stats().left_out > 0, "counted")


async def test_a_message_that_never_ends_is_not_kept() -> None:
    async with talking() as call:
        await call.open_channel()
        theirs, ours = call.client.connection.sctp, call.peer._connection.sctp
        assert theirs is not None and ours is not None and call.client.channel is not None
        theirs._send_chunk, send_chunk = _without_ends(theirs._send_chunk), theirs._send_chunk  # type: ignore[method-assign]
        for _ in range(20):
            call.client.channel.send("x" * 60000)
        await asyncio.sleep(2)
        kept = sum(len(chunk.user_data) for stream in ours._inbound_streams.values() for chunk in stream.reassembly)
        assert 0 < kept <= 262144
        theirs._send_chunk = send_chunk  # type: ignore[method-assign]
        await keeps_on(call)


def _without_ends(send_chunk: Any) -> Any:
    async def send(chunk: Any) -> None:
        if hasattr(chunk, "user_data"):
            chunk.flags &= ~1
        await send_chunk(chunk)

    return send


async def test_an_offer_sends_few_checks_to_addresses_of_its_choice() -> None:
    async with calling(connect_timeout_s=4.0) as call:
        offer = "\r\n".join(line for line in (await call.client.offer()).splitlines() if "candidate" not in line)
        address = call.client.connection.sctp.transport.transport.iceGatherer.getLocalCandidates()[0].ip  # type: ignore[union-attr]
        with closing(a_socket(address)) as one:
            lines = [f"a={host(one)['candidate']}"] * 1 + [
                f"a=candidate:1 1 udp 9 {address} {port} typ host" for port in range(2, 65)
            ]
            head, _, data = offer.partition("m=application")
            await call.peer.answer(head + "".join(f"{line}\r\n" for line in lines) + "m=application" + data + "\r\n")
            for port in range(100, 1000):
                call.peer.add_candidate({"candidate": f"candidate:1 1 udp 9 {address} {port} typ host", "sdpMid": "0"})
            sent = 0
            for protocol in call.peer._connection.getTransceivers()[
                0
            ].receiver.transport.transport._connection._protocols:
                real = protocol.transport.sendto

                def count(*args: Any, real: Any = real) -> None:
                    nonlocal sent
                    sent += 1
                    real(*args)

                protocol.transport.sendto = count  # type: ignore[method-assign, assignment]
            await until(call.peer.closed.is_set, "given up")
            assert 0 < sent <= MAX_CHECKS


@pytest.mark.parametrize("where", ["169.254.169.254", "127.0.0.1"])
async def test_addresses_out_of_reach_are_not_paired(where: str) -> None:
    async with calling() as call:
        offer = await call.client.offer()
        head, _, data = offer.partition("m=application")
        line = f"candidate:1 1 udp 2130706431 {where} 4711 typ host"
        await call.peer.answer(f"{head}a={line}\r\nm=application{data}")
        call.peer.add_candidate({"candidate": line, "sdpMid": "0"})
        await asyncio.sleep(0.1)
        ice = call.peer._connection.getTransceivers()[0].receiver.transport.transport._connection
        assert ice.remote_candidates and where not in {candidate.host for candidate in ice.remote_candidates}


async def test_a_client_that_asks_from_everywhere_gets_few_answers() -> None:
    """Who knows the passwords may write any sender on its packets."""
    async with talking() as call:
        at = address_of(call.peer._connection)
        ice = call.client.transceiver.receiver.transport.transport._connection
        (pair,) = ice._nominated.values()
        sockets = [a_socket(at[0]) for _ in range(3 * MAX_ADDRESSES)]
        for one in sockets:
            request = ice.build_request(pair, nominate=False)
            request.add_message_integrity(ice.remote_password.encode())  # type: ignore[union-attr]
            one.sendto(bytes(request), at)
        await keeps_on(call)
        answered = 0
        for one in sockets:
            with suppress(BlockingIOError):
                answered += bool(one.recv(2048))
            one.close()
        assert 0 < answered <= MAX_ADDRESSES


def test_an_allowance_comes_back_with_time() -> None:
    allowance = Allowance(4, 3)
    assert [allowance.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [allowance.take(100.25) for _ in range(2)] == [True, False]
    assert [allowance.take(999.0) for _ in range(4)] == [True, True, True, False]
