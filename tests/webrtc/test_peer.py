"""Peer against aiortc's own peer connection, over real sockets of this machine."""

import asyncio
import gc
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiortc.rtp import RtpPacket

from tests.webrtc.clients import Client, pitch_hz, until
from webrtc.peer import MAX_MESSAGE, Peer, Samples
from webrtc.rate import MAX_BPS
from webrtc.sdp import OfferError


@pytest.fixture(autouse=True)
async def no_task_outlives_its_call() -> AsyncIterator[None]:
    yield
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "every task ended", 5)


class Call:
    """A client, the peer that answered it, and what the peer heard."""

    def __init__(self, client: Client, **options: Any) -> None:
        self.client = client
        self.frames: list[Samples] = []
        self.texts: list[str] = []
        options = {"on_frame": self.frames.append, "on_message": self.texts.append, "measure_every_s": 0.1, **options}
        self.peer = Peer([], **options)

    async def begin(self) -> None:
        await self.client.accept(await self.peer.answer(await self.client.offer()))
        await until(self.peer.connected.is_set, "connected")
        await until(lambda: self.client.connection.connectionState == "connected", "the client connected")

    async def open_channel(self) -> None:
        channel = self.client.channel
        assert channel is not None
        await until(lambda: channel.readyState == "open", "the channel opened")

    @property
    def errors(self) -> list[str]:
        return [told["message"] for told in map(json.loads, self.client.messages) if told["type"] == "error"]


@asynccontextmanager
async def calling(client: Client | None = None, **options: Any) -> AsyncIterator[Call]:
    call = Call(client or Client(), **options)
    try:
        yield call
    finally:
        await call.peer.close()
        await call.client.close()


async def say(peer: Peer, hz: float, ready: Callable[[], bool]) -> None:
    """Plays a tone in blocks of 120 ms until the client has what it wants."""
    sent = 0
    begin_s = asyncio.get_running_loop().time()
    async with asyncio.timeout(30):
        while not ready():
            peer.play((0.3 * np.sin(2 * np.pi * hz / 22050 * (sent + np.arange(2646)))).astype(np.float32))
            sent += 2646
            await asyncio.sleep(max(0.0, begin_s + sent / 22050 - asyncio.get_running_loop().time()))


def loud(frames: list[Samples]) -> list[Samples]:
    return [frame for frame in frames if np.abs(frame).max() > 0.1]


async def test_both_sides_hear_each_other() -> None:
    async with calling(Client(hz=440)) as call:
        await call.begin()
        assert call.peer.direction == "sendrecv"
        await say(call.peer, 660, lambda: len(loud(call.client.heard)) > 60 and len(loud(call.frames)) > 60)
        assert {frame.shape for frame in call.frames} == {(320,)}
        assert pitch_hz(np.concatenate(loud(call.frames)[-30:]), 16000) == pytest.approx(440, abs=5)
        assert pitch_hz(np.concatenate(loud(call.client.heard)[-30:]), 48000) == pytest.approx(660, abs=5)
        await until(lambda: call.peer.stats().bitrate_in_bps > 0, "measured")
        stats = call.peer.stats()
        assert stats.bitrate_out_bps > 0 and stats.target_bps == MAX_BPS
        assert 0 <= stats.playout_ms < 400 and stats.jitter_buffer_ms > 0


async def test_the_answer_says_what_opus_we_want() -> None:
    async with calling() as call:
        answer = await call.peer.answer(await call.client.offer())
        audio = answer[answer.index("m=audio") : answer.index("m=application")]
        assert audio.count("a=rtpmap:") == 1 and "opus/48000/2" in audio
        for wanted in ("useinbandfec=1", "usedtx=1", "maxaveragebitrate=64000", "stereo=0"):
            assert wanted in audio
        assert "a=setup:passive" in answer and "a=setup:active" not in answer
        assert "a=candidate:" in answer and "stun" not in answer


async def test_a_listener_only_hears() -> None:
    async with calling(Client(direction="recvonly"), direction="sendonly") as call:
        await call.begin()
        assert call.peer.direction == "sendonly"
        await say(call.peer, 500, lambda: len(loud(call.client.heard)) > 20)
        assert not loud(call.frames)


async def test_a_one_way_client_only_speaks() -> None:
    """As WHIP's do: an offer that only sends gets an answer that only receives."""
    async with calling(Client(direction="sendonly", channel=False)) as call:
        await call.begin()
        assert call.peer.direction == "recvonly"
        await until(lambda: len(loud(call.frames)) > 20, "heard")
        assert not call.client.heard


async def test_messages_go_both_ways() -> None:
    async with calling() as call:
        await call.begin()
        await call.open_channel()
        assert call.client.channel is not None
        call.client.channel.send('{"type":"change","bypass":true}')
        await until(lambda: call.texts, "the message came")
        assert call.texts == ['{"type":"change","bypass":true}']
        call.peer.send_message({"type": "settings", "bypass": True})
        await until(lambda: call.client.messages, "the answer came")
        assert json.loads(call.client.messages[0]) == {"type": "settings", "bypass": True}


async def test_what_is_no_message_is_told_and_the_call_goes_on() -> None:
    def fails(text: str) -> None:
        raise RuntimeError("handler")

    async with calling(on_message=fails) as call:
        await call.begin()
        await call.open_channel()
        assert call.client.channel is not None
        call.client.channel.send(b"\x00\x01")
        await until(lambda: len(call.errors) == 1, "bytes were refused")
        call.client.channel.send("x" * (MAX_MESSAGE + 1))
        await until(lambda: len(call.errors) == 2, "the long text was refused")
        assert str(MAX_MESSAGE) in call.errors[1]
        call.client.channel.send("{}")
        heard = len(call.frames)
        await until(lambda: len(call.frames) > heard + 20, "still heard")
        assert not call.peer.closed.is_set()


async def test_other_channels_are_closed() -> None:
    async with calling() as call:
        await call.begin()
        await call.open_channel()
        other = call.client.open_channel("chat")
        await until(lambda: other.readyState == "closed", "the other channel was closed")


async def test_messages_without_a_channel_are_counted() -> None:
    async with calling(Client(channel=False)) as call:
        await call.begin()
        call.peer.send_message({"type": "stats"})
        await until(lambda: call.peer.stats().messages_dropped == 1, "counted")


async def test_hanging_up_reaches_the_client() -> None:
    async with calling() as call:
        await call.begin()
        await call.peer.close()
        assert call.peer.closed.is_set()
        await until(lambda: call.client.connection.connectionState == "closed", "the client knows")
        await call.peer.close()
        assert call.peer.reason == "this side hung up"


async def test_no_frame_comes_after_the_end() -> None:
    async with calling() as call:
        await call.begin()
        await until(lambda: call.frames, "heard")
        await call.peer.close()
        heard = len(call.frames)
        await asyncio.sleep(0.1)
        assert len(call.frames) == heard


async def test_a_client_that_hangs_up_closes_the_peer() -> None:
    async with calling() as call:
        await call.begin()
        await call.client.close()
        await until(call.peer.closed.is_set, "closed")
        assert call.peer.reason == "the client hung up"


async def test_a_client_that_vanishes_closes_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with calling(lost_after_s=0.5) as call:
        await call.begin()
        await until(lambda: loud(call.frames), "heard")
        transport = call.client.transceiver.receiver.transport.transport
        for protocol in transport._connection._protocols:
            monkeypatch.setattr(protocol.transport, "sendto", lambda *sent: None)
        await until(call.peer.closed.is_set, "closed")
        assert call.peer.reason == "nothing came from the client for 0.5 s"


async def test_a_connection_that_never_comes_about_is_given_up() -> None:
    async with calling(connect_timeout_s=0.3) as call:
        await call.peer.answer(await call.client.offer())  # and the client never learns of it
        await until(call.peer.closed.is_set, "given up")
        assert call.peer.reason == "no media connection came about within 0.3 s"


async def test_a_client_nobody_can_reach_is_given_up() -> None:
    async with calling(connect_timeout_s=0.3) as call:
        offer = without_candidates(await call.client.offer()) + "a=candidate:1 1 udp 1 192.0.2.77 9 typ host\r\n"
        await call.peer.answer(offer + "a=end-of-candidates\r\n")
        await until(call.peer.closed.is_set, "given up")


async def test_candidates_may_come_one_by_one_among_unusable_ones() -> None:
    async with calling() as call:
        offer = await call.client.offer()
        address = next(line.split()[4] for line in offer.splitlines() if "candidate:" in line and "." in line)
        with closing(a_socket(address)) as first, closing(a_socket(address)) as second:
            call.peer.add_candidate(host(first) | {"sdpMid": "0", "sdpMLineIndex": 0})  # before the offer was read
            answer = await call.peer.answer(without_candidates(offer))
            for unusable in (
                {"candidate": "candidate:1 1 udp 2122 c0ffee00-1111-4222-8333-444444444444.local 50000 typ host"},
                {"candidate": "candidate:1 1 tcp 1518 192.0.2.2 9 typ host tcptype active", "sdpMid": "0"},
                {"candidate": "candidate:1 1 udp x 192.0.2.2 9 typ host"},
                {"candidate": "candidate:1 1 udp 7 no-such-host.example 9 typ host"},
                {"candidate": "rubbish"},
                {"candidate": None},
                {},
                {"candidate": ""},
            ):
                call.peer.add_candidate(unusable)
            call.peer.add_candidate(host(second))  # of no section, as in WHIP's fragments
            call.peer.add_candidate(None)
            await until(lambda: checked(first) and checked(second), "both were tried")
        await call.client.accept(answer)
        await until(call.peer.connected.is_set, "connected")


async def test_a_client_that_hides_its_addresses_is_found_by_its_own_checks() -> None:
    async with calling() as call:
        offer = without_candidates(await call.client.offer())
        hidden = "a=candidate:1 1 udp 2122 c0ffee00-1111-4222-8333-444444444444.local 50000 typ host\r\n"
        answer = await call.peer.answer(offer + hidden + "a=end-of-candidates\r\n")
        await call.client.accept(answer)
        await until(call.peer.connected.is_set, "connected")


async def test_a_flood_of_candidates_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with calling() as call:
        taken = list[Any]()

        async def take(candidate: Any) -> None:
            taken.append(candidate)

        monkeypatch.setattr(call.peer._connection, "addIceCandidate", take)
        for port in range(1, 1000):
            call.peer.add_candidate({"candidate": f"candidate:1 1 udp 1 192.0.2.77 {port} typ host", "sdpMid": "0"})
            if port == 500:
                await call.begin()
                await until(lambda: len(taken) == 64, "those that waited were taken")
        await asyncio.sleep(0.1)
        assert len(taken) == 64


async def test_the_bitrate_follows_the_loss_that_the_client_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    async with calling() as call:
        receiver = call.client.transceiver.receiver
        take = receiver._handle_rtp_packet

        async def lossy(packet: RtpPacket, arrival_time_ms: int) -> None:
            if packet.sequence_number % 3:
                await take(packet, arrival_time_ms)

        monkeypatch.setattr(receiver, "_handle_rtp_packet", lossy)
        await call.begin()
        await say(call.peer, 500, lambda: call.peer.stats().loss_out > 0.2)
        assert 0 < call.peer.stats().target_bps < MAX_BPS


async def test_the_round_trip_is_measured() -> None:
    async with calling() as call:
        await call.begin()
        await say(call.peer, 500, lambda: call.peer.stats().rtt_ms is not None)
        rtt_ms = call.peer.stats().rtt_ms
        assert rtt_ms is not None and rtt_ms < 1000


async def test_a_consumer_that_fails_ends_the_call(caplog: pytest.LogCaptureFixture) -> None:
    def full(frame: Samples) -> None:
        if np.abs(frame).max() > 0.1:
            raise RuntimeError("no room")

    async with calling(on_frame=full) as call:
        await call.begin()
        await until(call.peer.closed.is_set, "closed")
        assert call.peer.failed and call.peer.reason == "something failed on this side"
    assert "no room" in caplog.text


async def test_a_measurement_that_fails_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async with calling() as call:
        monkeypatch.setattr(call.peer._reports, "read", None)
        await call.begin()
        await until(call.peer.closed.is_set, "closed")
        assert call.peer.failed


async def test_a_peer_that_was_never_asked_closes() -> None:
    peer = Peer([], on_frame=lambda frame: None)
    await peer.close()
    assert peer.closed.is_set()


async def test_closing_while_connecting() -> None:
    async with calling() as call:
        await call.client.accept(await call.peer.answer(await call.client.offer()))
        await call.peer.close()


async def test_closing_while_answering() -> None:
    async with calling() as call:
        answering = asyncio.create_task(call.peer.answer(await call.client.offer()))
        await asyncio.sleep(0)
        await call.peer.close()
        with pytest.raises(ConnectionError, match="closed while it answered"):
            await answering


async def test_leaving_while_it_answers() -> None:
    async with calling() as call:
        answering = asyncio.create_task(call.peer.answer(await call.client.offer()))
        await asyncio.sleep(0)
        answering.cancel()
        await asyncio.wait([answering])
        assert answering.cancelled() and call.peer.closed.is_set()


async def test_ended_calls_leave_nothing_behind() -> None:
    def left() -> tuple[int, int, int]:
        gc.collect()
        peers = sum(type(thing) is Peer for thing in gc.get_objects())  # isinstance asks proxies, which warn
        return peers, threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    async def one_call() -> None:
        async with calling() as call:
            await call.begin()
            await until(lambda: call.frames, "heard")

    await one_call()
    before = left()
    for _ in range(5):
        await one_call()
    await until(lambda: left() == before, f"as before: {before}", 5)


async def test_an_offer_without_audio_closes_the_peer() -> None:
    async with calling() as call:
        with pytest.raises(OfferError, match="no audio track"):
            await call.peer.answer("v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n")
        assert call.peer.closed.is_set()


VIDEO = """m=video {port} UDP/TLS/RTP/SAVPF 96
c=IN IP4 0.0.0.0
a=mid:v
a={direction}
a=rtcp-mux
a=rtpmap:96 VP8/90000
{transport}
"""


def with_video(offer: str, port: int, direction: str, first: bool, transport: bool) -> str:
    """The offer with a section of video as well."""
    head, audio, data = re.split("^(?=m=)", offer, flags=re.MULTILINE)
    kept = [line for line in audio.splitlines() if line.startswith(("a=ice", "a=finger", "a=setup", "a=candidate"))]
    video = VIDEO.format(port=port, direction=direction, transport="\n".join(kept if transport else []))
    head = head.replace("BUNDLE 0 1", "BUNDLE v 0 1" if first else "BUNDLE 0 1 v")
    return head + (video + audio + data if first else audio + data + video)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("port", "direction", "transport"), [(0, "inactive", False), (9, "recvonly", True)])
async def test_video_is_rejected_by_itself_and_the_call_comes_about(
    first: bool, port: int, direction: str, transport: bool
) -> None:
    async with calling() as call:
        answer = await call.peer.answer(with_video(await call.client.offer(), port, direction, first, transport))
        head, *sections = re.split("^(?=m=)", answer, flags=re.MULTILINE)
        video = sections.pop(0 if first else 2)
        assert video.startswith("m=video 0 UDP/TLS/RTP/SAVPF 96\r\n") and "a=mid:v\r\n" in video
        assert "a=group:BUNDLE 0 1\r\n" in head and "a=sendrecv\r\n" in sections[0]
        await call.client.accept(head + "".join(sections))  # aiortc itself takes no answer with a rejected section
        await say(call.peer, 660, lambda: bool(loud(call.client.heard) and loud(call.frames)))
        await call.open_channel()


@pytest.mark.parametrize("first", [True, False])
async def test_candidates_of_a_rejected_section_are_left_out(first: bool) -> None:
    async with calling() as call:
        offer = with_video(without_candidates(await call.client.offer()), 9, "recvonly", first, True)
        address = call.client.connection.sctp.transport.transport.iceGatherer.getLocalCandidates()[0].ip  # type: ignore[union-attr]
        with closing(a_socket(address)) as video, closing(a_socket(address)) as audio:
            await call.peer.answer(offer)
            call.peer.add_candidate(host(video) | {"sdpMid": "v", "sdpMLineIndex": 0 if first else 2})
            call.peer.add_candidate(host(audio) | {"sdpMid": None, "sdpMLineIndex": 1 if first else 0})
            await until(lambda: checked(audio), "the sound's was tried")
            assert not checked(video)


async def test_candidates_without_a_section_belong_to_the_sound() -> None:
    """As in the fragments of WHIP clients, here where video comes first."""
    async with calling() as call:
        offer = with_video(without_candidates(await call.client.offer()), 9, "recvonly", True, True)
        address = call.client.connection.sctp.transport.transport.iceGatherer.getLocalCandidates()[0].ip  # type: ignore[union-attr]
        with closing(a_socket(address)) as audio:
            await call.peer.answer(offer)
            call.peer.add_candidate(host(audio))
            await until(lambda: checked(audio), "it was tried")


async def test_an_offer_that_aiortc_cannot_take_is_refused() -> None:
    async with calling() as call:
        offer = (await call.client.offer()).replace("a=ice-ufrag:", "a=ice-ufrag:\r\na=ice-ufrag:")
        broken = "\r\n".join("a=ice-ufrag:" if "a=ice-ufrag:" in line else line for line in offer.splitlines())
        with pytest.raises(OfferError):
            await call.peer.answer(broken)


def without_candidates(offer: str) -> str:
    kept = (line for line in offer.splitlines() if "candidate" not in line)
    return "\r\n".join(kept) + "\r\n"


def a_socket(address: str) -> socket.socket:
    """Where no client is, but somebody who sees whether he is asked."""
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    one.bind((address, 0))
    one.setblocking(False)
    return one


def host(one: socket.socket) -> dict[str, Any]:
    address, port = one.getsockname()[:2]
    return {"candidate": f"candidate:1 1 udp 2130706431 {address} {port} typ host"}


def checked(one: socket.socket) -> bool:
    """Whether a connectivity check has come; leaves it there."""
    try:
        return len(one.recv(2048, socket.MSG_PEEK)) > 0
    except BlockingIOError:
        return False
