"""Offers and candidates of any shape: one clear refusal, or something that aiortc takes."""

import asyncio
import re
import time

from hypothesis import given
from hypothesis import strategies as st

from serve_app.calls.sdp import check_offer, trickled
from serve_app.errors import Refused
from tests.fuzz.budget import budgeted
from tests.webrtc.test_sdp import AUDIO, DATA, HEAD, TRANSPORT, VIDEO
from webrtc.candidates import Reach, read_candidate
from webrtc.peer import Peer
from webrtc.sdp import Direction, Offer, OfferError, complete_answer, read_offer

LIMIT_S = 5.0
"""For one input on a busy machine: a parser that looks everything up in everything takes longer."""

CANDIDATE = "candidate:1 1 udp 2122 192.0.2.9 5000 typ host"
LINES = sorted(
    {*(HEAD + AUDIO + DATA + VIDEO + TRANSPORT).splitlines(), f"a={CANDIDATE}", "a=bundle-only", "a=inactive"}
)
ATTRIBUTES = ["rtpmap", "fmtp", "extmap", "group", "mid", "setup", "ssrc", "sctp-port", "max-message-size", "ice-pwd"]
words = st.sampled_from(
    ["0", "1", "9", "111", "65536", "-1", "*", "", "opus/48000/2", "BUNDLE", "a=", "m=", "é", "\x00"]
)
ways = st.sampled_from(["sendrecv", "sendonly", "recvonly", "inactive"])


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A line of an offer, whole or with one word replaced, or nothing like one."""
    line: str = draw(st.sampled_from(LINES))
    match draw(st.integers(0, 5)):
        case 0:
            return draw(st.text(max_size=60))
        case 1:
            parts = re.split("([ :/;=])", line)
            parts[draw(st.integers(0, len(parts) - 1))] = draw(words | st.text(max_size=8))
            return "".join(parts)
        case 2:
            return f"a={draw(st.sampled_from(ATTRIBUTES))}:{draw(st.text(max_size=20))}"
    return line


@st.composite
def offers(draw: st.DrawFn) -> str:
    """An offer that works, with sections shuffled and lines added, left out, repeated or replaced."""
    media = draw(st.permutations([AUDIO, DATA, VIDEO, AUDIO.replace("mid:0", "mid:3")]))
    found = (HEAD + "".join(media[: draw(st.integers(1, 4))])).splitlines()
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(found)))
        match draw(st.integers(0, 3)):
            case 0:
                found[at:at] = [draw(lines())] * draw(st.sampled_from([1, 1, 1, 2, 100, 700]))
            case 1:
                del found[at : at + draw(st.integers(1, 3))]
            case _:
                found[at : at + 1] = [draw(lines())]
    return draw(st.sampled_from(["\r\n", "\n"])).join(found) + "\r\n"


directions: st.SearchStrategy[Direction] = st.sampled_from(["sendrecv", "sendonly", "recvonly"])


def read(text: str, willing: Direction) -> Offer | None:
    began = time.monotonic()
    try:
        return read_offer(text, willing)
    except OfferError as error:
        assert 10 < len(str(error)) < 400
        return None
    finally:
        assert time.monotonic() - began < LIMIT_S


@budgeted(examples=150)
@given(offers() | st.text(max_size=3000), directions)
def test_an_offer_is_read_or_refused(text: str, willing: Direction) -> None:
    offer = read(text, willing)
    if offer is not None:
        answer = complete_answer(offer.sdp, offer)
        ports = [line.split()[1] for line in answer.splitlines() if line.startswith("m=")]
        assert [port == "0" for port in ports] == [
            section.rejection is not None and not section.stays for section in offer.sections
        ]
        assert len(offer.sdp.splitlines()) < 100 and offer.sdp.isascii()


@budgeted(examples=60)
@given(st.sampled_from(LINES), st.sampled_from([100, 3000, 65536]), lines())
def test_many_lines_of_a_kind_are_read_or_refused(line: str, size: int, other: str) -> None:
    for pair in (f"{line}\r\n", f"{line}\r\n{other}\r\n", line):
        read((HEAD + AUDIO + pair * (size // len(pair)))[:65536], "sendrecv")


@budgeted(examples=25)
@given(offers(), directions)
def test_aiortc_takes_what_was_read(text: str, willing: Direction) -> None:
    async def answer() -> None:
        peer = Peer([], on_frame=lambda frame: None, direction=willing)
        try:
            async with asyncio.timeout(LIMIT_S):
                assert (await peer.answer(text)).startswith("v=0")
        finally:
            await peer.close()

    if read(text, willing) is not None:
        asyncio.run(answer())


@budgeted(examples=100)
@given(offers() | st.text(max_size=300))
def test_signalling_refuses_with_a_status(text: str) -> None:
    for work in (lambda: check_offer(text, "sendrecv"), lambda: list(trickled(text))):
        try:
            work()
        except Refused as error:
            assert error.status_code in (400, 422)


parts = st.one_of(
    st.sampled_from(
        ["candidate:1", "1", "udp", "UDP", "tcp", "2122", "192.0.2.9", "::1", "fe80::1%1", "5000", "typ", "host"]
    ),
    st.ip_addresses().map(str),
    st.integers().map(str),
    st.text(max_size=12),
)


@budgeted(examples=200)
@given(st.lists(parts, max_size=12).map(" ".join) | st.text(max_size=200))
def test_a_candidate_is_read_or_left_out(line: str) -> None:
    found = read_candidate(line, Reach(loopback=True))
    assert found is None or (0 < found.port < 65536 and found.component == 1)


@budgeted(examples=200)
@given(st.ip_addresses(), st.integers(1, 65535), st.booleans(), st.booleans())
def test_an_address_within_reach_is_of_a_kind_that_is_allowed(
    address: object, port: int, loopback: bool, private: bool
) -> None:
    found = read_candidate(f"candidate:1 1 udp 2122 {address} {port} typ host", Reach(loopback, private))
    if found is not None:
        assert not re.match("(169[.]254|22[4-9]|2[345][0-9]|0)[.]|(fe[89a-f]|ff[0-9a-f]).:", found.ip)


@budgeted(examples=10)
@given(
    st.lists(
        st.one_of(parts, st.none(), st.integers(), st.dictionaries(st.text(), parts, max_size=2)),
        min_size=3,
        max_size=30,
    )
)
def test_trickled_candidates_of_any_shape_do_no_harm(given: list[object]) -> None:
    async def trickle() -> None:
        peer = Peer([], on_frame=lambda frame: None)
        try:
            peer.add_candidate({"candidate": given[0], "sdpMid": given[1], "sdpMLineIndex": given[2]})
            await peer.answer(HEAD + AUDIO + DATA)
            for mid in given:
                peer.add_candidate({"candidate": CANDIDATE, "sdpMid": mid, "sdpMLineIndex": mid})
            await asyncio.sleep(0.02)
            assert not peer.closed.is_set()
        finally:
            await peer.close()

    asyncio.run(trickle())
