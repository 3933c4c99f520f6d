"""What is taken of an offer, and what is refused, each with one sentence."""

import pytest
from aiortc.sdp import SessionDescription

from webrtc.sdp import Direction, OfferError, is_usable, read_offer, with_opus_parameters

HEAD = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\n"
TRANSPORT = (
    "c=IN IP4 0.0.0.0\r\na=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdefghijkl\r\n"
    "a=fingerprint:sha-256 AA:BB\r\na=setup:actpass\r\n"
)
AUDIO = (
    "m=audio 9 UDP/TLS/RTP/SAVPF 111 0\r\n" + TRANSPORT + "a=mid:0\r\na=sendrecv\r\na=rtcp-mux\r\n"
    "a=rtpmap:111 opus/48000/2\r\na=fmtp:111 minptime=10;useinbandfec=1\r\na=rtpmap:0 PCMU/8000\r\n"
)
DATA = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n" + TRANSPORT + "a=mid:1\r\na=sctp-port:5000\r\n"
VIDEO = AUDIO.replace("m=audio", "m=video").replace("a=mid:0", "a=mid:2").replace("opus/48000/2", "VP8/90000")
OFFER = HEAD + AUDIO + DATA


def test_a_browsers_offer_is_taken() -> None:
    offer = read_offer(OFFER, "sendrecv")
    assert (offer.direction, offer.max_bps, offer.mids) == ("sendrecv", 64000, ("0", "1"))
    assert "a=setup:actpass" not in offer.sdp and offer.sdp.count("a=setup:active") == 2


def test_a_role_that_is_fixed_stays() -> None:
    assert "a=setup:passive" in read_offer(OFFER.replace("actpass", "passive"), "sendrecv").sdp


def test_candidates_that_cannot_be_reached_and_the_end_of_them_are_left_out() -> None:
    lines = [
        "a=candidate:1 1 udp 2122 192.0.2.9 5000 typ host",
        "a=candidate:2 1 udp 2122 0b0b0b0b.local 5000 typ host",
        "a=candidate:3 1 tcp 1518 192.0.2.9 9 typ host tcptype active",
        "a=end-of-candidates",
    ]
    offer = read_offer(HEAD + AUDIO + "\r\n".join(lines) + "\r\n", "sendrecv")
    assert [line in offer.sdp for line in lines] == [True, False, False, False]


@pytest.mark.parametrize(
    ("willing", "offered", "answered"),
    [
        ("sendrecv", "sendrecv", "sendrecv"),
        ("sendrecv", "sendonly", "recvonly"),
        ("sendrecv", "recvonly", "sendonly"),
        ("recvonly", "sendrecv", "recvonly"),
        ("recvonly", "sendonly", "recvonly"),
        ("sendonly", "sendrecv", "sendonly"),
        ("sendonly", "recvonly", "sendonly"),
    ],
)
def test_the_direction_is_what_both_sides_want(willing: Direction, offered: str, answered: str) -> None:
    assert read_offer(OFFER.replace("a=sendrecv", f"a={offered}"), willing).direction == answered


def test_no_direction_means_both() -> None:
    offer = read_offer(OFFER.replace("a=sendrecv\r\n", ""), "sendrecv")
    assert offer.direction == "sendrecv"
    assert SessionDescription.parse(offer.sdp).media[0].direction == "sendrecv"


def test_a_limit_of_the_client_is_kept() -> None:
    limited = OFFER.replace("useinbandfec=1", "useinbandfec=1;maxaveragebitrate=20000")
    assert read_offer(limited, "sendrecv").max_bps == 20000
    assert read_offer(limited.replace("20000", "510000"), "sendrecv").max_bps == 64000
    assert read_offer(limited.replace("20000", "lots"), "sendrecv").max_bps == 64000


def test_upper_case_opus_is_opus() -> None:
    assert read_offer(OFFER.replace("opus", "OPUS"), "recvonly").direction == "recvonly"


@pytest.mark.parametrize(
    ("offer", "wrong"),
    [
        ("", "no audio track"),
        (HEAD + DATA, "no audio track"),
        (HEAD + AUDIO + VIDEO, "has video; allowed are one audio track"),
        (HEAD + AUDIO + AUDIO.replace("mid:0", "mid:2"), "2 audio tracks"),
        (HEAD + AUDIO + DATA + DATA.replace("mid:1", "mid:2"), "more than one data section"),
        (OFFER.replace("opus/48000/2", "G722/8000"), "codecs are G722, PCMU; it must have opus/48000"),
        (OFFER.replace("a=ice-pwd:0123456789abcdefghijkl\r\n", ""), "no ICE user name"),
        (OFFER.replace("a=fingerprint:sha-256 AA:BB\r\n", ""), "no DTLS fingerprint"),
        (OFFER.replace("a=setup:actpass\r\n", ""), "no DTLS fingerprint and role"),
        (OFFER.replace("a=rtcp-mux\r\n", ""), "must have a=rtcp-mux"),
        (OFFER.replace("a=sendrecv", "a=inactive"), "audio is inactive"),
        (OFFER.replace("m=audio 9", "m=audio nine"), "not a valid session description"),
        (OFFER.replace("a=rtpmap:111 opus/48000/2", "a=rtpmap:111"), "not a valid session description"),
        (OFFER.replace("a=fmtp:111", "a=fmtp:99"), "not a valid session description"),
        (OFFER.replace("actpass", "sometimes"), "not a valid session description"),
        (OFFER + "a=candidate:rubbish\r\n", "not a valid session description"),
        (OFFER + "a=x\r\n" * 20000, "characters; at most 65536 are allowed"),
        ("\x00\xff{}" * 10, "no audio track"),
    ],
)
def test_what_makes_no_call_is_refused_in_one_sentence(offer: str, wrong: str) -> None:
    with pytest.raises(OfferError, match=wrong):
        read_offer(offer, "sendrecv")


@pytest.mark.parametrize(("willing", "offered"), [("recvonly", "recvonly"), ("sendonly", "sendonly")])
def test_two_sides_that_want_the_same_one_way_are_refused(willing: Direction, offered: str) -> None:
    with pytest.raises(OfferError, match=f"audio is {offered}; allowed here are (sendonly|recvonly) and sendrecv"):
        read_offer(OFFER.replace("a=sendrecv", f"a={offered}"), willing)


@pytest.mark.parametrize(
    ("port", "usable"), [("1", True), ("65535", True), ("0", False), ("65536", False), ("x", False)]
)
def test_a_candidate_has_a_port_that_exists(port: str, usable: bool) -> None:
    assert is_usable(f"candidate:1 1 udp 2122 192.0.2.1 {port} typ host") is usable


def test_an_answer_gets_parameters_for_opus_alone() -> None:
    answer = with_opus_parameters("m=audio 9 x 111\r\na=rtpmap:111 opus/48000/2\r\na=rtpmap:0 PCMU/8000\r\n")
    assert answer.splitlines()[1:4] == [
        "a=rtpmap:111 opus/48000/2",
        "a=fmtp:111 minptime=10;useinbandfec=1;usedtx=1;maxaveragebitrate=64000;stereo=0;sprop-stereo=0",
        "a=ptime:20",
    ]
    assert answer.endswith("a=rtpmap:0 PCMU/8000\r\n")
