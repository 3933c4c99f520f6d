"""What is taken of an offer, and what is refused, each with one sentence."""

import pickle

import pytest
from aiortc.sdp import SessionDescription

from webrtc.sdp import MAX_ALIKE_OF, Direction, OfferError, complete_answer, read_offer, with_opus_parameters

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
REJECTED_VIDEO = "m=video 0 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\na=mid:2\r\na=inactive\r\n"


def answer_to(offer: str, willing: Direction = "sendrecv") -> str:
    """What aiortc answers, as far as it matters here, completed."""
    read = read_offer(offer, willing)
    media = [section for section in SessionDescription.parse(read.sdp).media]
    sections = [
        f"m={section.kind} 4711 x {' '.join(map(str, section.fmt))}\r\na=mid:{section.rtp.muxId}\r\n"
        for section in media
    ]
    return complete_answer("v=0\r\na=group:BUNDLE 0 1\r\n" + "".join(sections), read)


def sections_of(answer: str) -> list[str]:
    """Kind, port and name of each section."""
    lines = [line for line in answer.splitlines() if line.startswith(("m=", "a=mid:"))]
    return [" ".join(line.split()[:2]) if line[0] == "m" else line for line in lines]


def test_a_browsers_offer_is_taken() -> None:
    offer = read_offer(OFFER, "sendrecv")
    assert (offer.direction, offer.max_bps, offer.mids) == ("sendrecv", 64000, ("0", "1"))
    assert "a=setup:actpass" not in offer.sdp and offer.sdp.count("a=setup:active") == 2


def test_a_role_that_is_fixed_stays() -> None:
    assert "a=setup:passive" in read_offer(OFFER.replace("actpass", "passive"), "sendrecv").sdp


def test_candidates_are_kept_apart() -> None:
    lines = ["candidate:1 1 udp 2122 192.0.2.9 5000 typ host", "candidate:2 1 udp 2122 0b0b0b0b.local 5000 typ host"]
    more = "".join(f"a={line}\r\n" for line in lines) + "a=end-of-candidates\r\n"
    offer = read_offer(HEAD + AUDIO + more, "sendrecv")
    assert offer.candidates == tuple((line.removeprefix("candidate:"), 0) for line in lines)
    assert "candidate" not in offer.sdp


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
        (HEAD + VIDEO, "no audio track"),
        (HEAD + AUDIO.replace("m=audio 9", "m=audio 0"), "audio has port 0"),
        (HEAD + AUDIO.replace("m=audio 9", "m=audio 0") + "a=bundle-only\r\n" * 2, "audio has port 0"),
        (OFFER.replace("a=mid:1", "a=mid:0"), "two of its sections have the same a=mid"),
        (OFFER.replace("a=mid:1", "a=mid:é"), "'a=mid:é'; allowed are"),
        (OFFER.replace("111", "9"), "numbered 96 to 127"),
        (OFFER.replace("UDP/TLS/RTP/SAVPF 111", "UDP/BFCP 111"), "audio is UDP/BFCP; it must be UDP/TLS/RTP/SAVPF"),
        (HEAD + DATA, "no audio track"),
        (OFFER.replace("opus/48000/2", "G722/8000"), "codecs are G722, PCMU; it must have opus/48000"),
        (OFFER.replace("a=ice-pwd:0123456789abcdefghijkl\r\n", ""), "no ICE user name"),
        (OFFER.replace("a=fingerprint:sha-256 AA:BB\r\n", ""), "no DTLS fingerprint"),
        (OFFER.replace("a=setup:actpass\r\n", ""), "no DTLS fingerprint and role"),
        (OFFER.replace("a=rtcp-mux\r\n", ""), "must have a=rtcp-mux"),
        (OFFER.replace("a=sendrecv", "a=inactive"), "audio is inactive"),
        (OFFER.replace("m=audio 9", "m=audio nine"), "not a valid session description"),
        (OFFER.replace("a=rtpmap:111 opus/48000/2", "a=rtpmap:111"), "not a valid session description"),
        (OFFER.replace("actpass", "sometimes"), "not a valid session description"),
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


SHA_1 = "a=fingerprint:sha-1 AA\r\n"


def test_other_fingerprints_than_ours_do_no_harm() -> None:
    offer = read_offer(OFFER.replace("a=fingerprint:sha-256", SHA_1 + "a=fingerprint:SHA-256"), "sendrecv")
    assert "SHA-256" in offer.sdp and "sha-1" not in offer.sdp
    with pytest.raises(OfferError, match="with sha-256, sha-384 or sha-512"):
        read_offer(OFFER.replace("sha-256", "sha-1"), "sendrecv")


def test_what_the_session_says_holds_for_its_sections() -> None:
    transport = TRANSPORT.partition("\r\n")[2]
    offer = read_offer(
        HEAD + transport + "a=recvonly\r\n" + OFFER[len(HEAD) :].replace(transport, "").replace("a=sendrecv\r\n", ""),
        "sendrecv",
    )
    assert offer.direction == "sendonly" and offer.sdp.count("a=ice-pwd:0123456789abcdefghijkl") == 2


def test_an_offer_travels_between_replicas_and_tells_no_password() -> None:
    offer = read_offer(OFFER, "sendrecv")
    assert pickle.loads(pickle.dumps(offer)) == offer
    assert "0123456789abcdefghijkl" not in repr(offer)


# --- sections that a call has no use for


def test_a_rejected_section_keeps_its_place() -> None:
    rejected = (
        "m=video 0 UDP/TLS/RTP/SAVPF 96 97\r\nc=IN IP4 0.0.0.0\r\na=mid:2\r\na=inactive\r\na=rtpmap:96 VP8/90000\r\n"
    )
    for offer, sections in (
        (HEAD + AUDIO + rejected, ["m=audio 4711", "a=mid:0", "m=video 0", "a=mid:2"]),
        (
            HEAD + rejected + AUDIO + DATA,
            ["m=video 0", "a=mid:2", "m=audio 4711", "a=mid:0", "m=application 4711", "a=mid:1"],
        ),
        (
            HEAD + AUDIO + rejected + DATA,
            ["m=audio 4711", "a=mid:0", "m=video 0", "a=mid:2", "m=application 4711", "a=mid:1"],
        ),
    ):
        answer = answer_to(offer)
        assert sections_of(answer) == sections
        assert REJECTED_VIDEO.replace("96", "96 97") in answer


@pytest.mark.parametrize(
    "unwanted",
    [
        VIDEO,
        VIDEO.replace("m=video 9", "m=video 9/2"),
        AUDIO.replace("mid:0", "mid:2"),
        AUDIO.replace("mid:0", "mid:2").replace("opus/48000/2", "G722/8000"),
        "m=text 9 RTP/SAVPF 98\r\na=mid:2\r\n",
        "m=application 9 UDP/BFCP *\r\na=mid:2\r\n",
        "m=application 9 UDP/DTLS/SCTP something-else\r\n" + TRANSPORT + "a=mid:2\r\n",
        "m=message 9 TCP/MSRP *\r\na=mid:2\r\n",
        "m=image 9 udptl t38\r\na=mid:2\r\n",
        DATA.replace("mid:1", "mid:2").replace("port:5000", "port:0"),
    ],
)
def test_what_a_call_has_no_use_for_is_rejected_by_itself(unwanted: str) -> None:
    for offer in (
        HEAD.replace("0 1", "2 0 1") + unwanted + AUDIO + DATA,
        HEAD.replace("0 1", "0 1 2") + AUDIO + DATA + unwanted,
    ):
        answer = answer_to(offer)
        kind = unwanted[2:].split()[0]
        ours = ["m=audio 4711", "a=mid:0", "m=application 4711", "a=mid:1"]
        theirs = [f"m={kind} 0", "a=mid:2"]
        # of two tracks that can be served the first is
        if unwanted == AUDIO.replace("mid:0", "mid:2") and offer.index("a=mid:2") < offer.index("a=mid:0"):
            assert sections_of(answer) == ["m=audio 4711", "a=mid:2", "m=audio 0", "a=mid:0", *ours[2:]]
            continue
        assert sections_of(answer) == (
            theirs + ours if offer.index("a=mid:2") < offer.index("a=mid:0") else ours + theirs
        )
        assert "a=group:BUNDLE 0 1\r\n" in answer


def test_of_two_data_sections_one_is_served() -> None:
    answer = answer_to(HEAD + AUDIO + DATA + DATA.replace("mid:1", "mid:2"))
    assert sections_of(answer)[2:] == ["m=application 4711", "a=mid:1", "m=application 0", "a=mid:2"]


def test_a_section_without_a_name_is_answered_without_one() -> None:
    plain = "v=0\r\nt=0 0\r\n" + (AUDIO + VIDEO).replace("a=mid:0\r\n", "").replace("a=mid:2\r\n", "")
    answer = answer_to(plain)
    assert (
        "BUNDLE" not in answer and "m=video 0 UDP/TLS/RTP/SAVPF 111 0\r\nc=IN IP4 0.0.0.0\r\na=inactive\r\n" in answer
    )


@pytest.mark.parametrize("says_so", [True, False])
def test_sound_that_lives_on_the_connection_of_rejected_video_takes_it_over(says_so: bool) -> None:
    """As in an offer with the bundle policy max-bundle whose first section is video."""
    video = VIDEO + "a=candidate:1 1 udp 2122 192.0.2.9 5000 typ host\r\n"
    audio = AUDIO.replace("m=audio 9", "m=audio 0").replace(TRANSPORT, "c=IN IP4 0.0.0.0\r\na=bundle-only\r\n")
    audio = audio if says_so else AUDIO  # Chromium does not
    offer = read_offer(HEAD.replace("0 1", "2 0") + video + audio, "sendrecv")
    assert "a=ice-ufrag:abcd" in offer.sdp and "a=fingerprint:sha-256 AA:BB" in offer.sdp
    assert offer.bundle == ("2", "0") and [index for _, index in offer.candidates] == [0]
    assert offer.carrier("2", 0) == offer.carrier("0", 1) == 0
    ours = "v=0\r\nm=audio 4711 x 111\r\na=mid:0\r\na=ice-ufrag:ours\r\na=setup:passive\r\n"
    kept = complete_answer(ours, offer)[: -len(ours) + len("v=0\r\n")]
    assert "a=group:BUNDLE 2 0\r\nm=video 9 " in kept and "a=inactive\r\n" in kept
    assert "a=ice-ufrag:ours\r\n" in kept and "a=setup:passive\r\n" in kept


def test_candidates_find_their_section() -> None:
    offer = read_offer(HEAD.replace("0 1", "2 0 1") + VIDEO + AUDIO + DATA, "sendrecv")
    assert [offer.carrier(mid, None) for mid in ("2", "0", "1")] == [None, 0, 1]
    assert [offer.carrier(None, index) for index in (0, 1, 2)] == [None, 0, 1]
    assert [offer.carrier(*unknown) for unknown in ((None, None), ("x", None), ("", 7), ("0", 0), (None, "1"))] == [
        0
    ] * 5


# --- bounds


def many(line: str, count: int = 2000, section: str = AUDIO) -> str:
    return HEAD + section + line * count


@pytest.mark.parametrize(
    ("offer", "wrong"),
    [
        (many("a=x\r\n"), "has 2018 lines; at most 2000 are allowed"),
        (many("a=rtpmap:1 a/1\r\n", 500), "audio section has more than 128 lines a=rtpmap; allowed is no more"),
        (many("a=rtpmap:1 a/1\r\n", 900) + "a=rtcp-fb:* x\r\n" * 900, "more than 128 lines a=rtpmap"),
        (many("a=rtcp-fb:* x\r\n", 600), "more than 512 lines a=rtcp-fb"),
        (many("a=fmtp:111 x\r\n", 500), "more than 128 lines a=fmtp"),
        (many("a=extmap:1 x\r\n", 500), "more than 128 lines a=extmap"),
        (many("a=ssrc:1 cname:x\r\n", 500), "more than 128 lines a=ssrc"),
        (many("a=candidate:1 1 udp 1 192.0.2.1 1 typ host\r\n", 65), "more than 64 lines a=candidate"),
        (many("a=ice-ufrag:abcd\r\n", 1), "more than one line a=ice-ufrag"),
        (many("a=fingerprint:sha-256 AA\r\n", 20), "more than 16 lines a=fingerprint"),
        (many("a=setup:active\r\n", 1), "more than one line a=setup"),
        (many("a=mid:7\r\n", 1), "more than one line a=mid"),
        (
            many("a=group:BUNDLE 0\r\n", 100, "").removesuffix("\r\n") + "\r\n" + AUDIO,
            "session part has more than 16 lines a=group",
        ),
        (many("m=video 0 RTP/SAVPF 96\r\n", 40), "more than 32 media sections"),
        (HEAD + AUDIO + "a=rtcp-fb:* x\r\n" * 600 + DATA, "more than 512"),
        (many("a=x:" + "y" * 5000 + "\r\n", 1), "a line of 5004 characters; at most 4096 are allowed"),
        (many("m=video 9 RTP/SAVPF " + "96 " * 2000 + "\r\n", 1), "a line of"),
    ],
)
def test_an_offer_has_bounds_that_it_is_told(offer: str, wrong: str) -> None:
    with pytest.raises(OfferError, match=wrong):
        read_offer(offer, "sendrecv")


def test_the_bounds_hold_for_sections_that_nobody_wants_too() -> None:
    with pytest.raises(OfferError, match="video section has more than 128 lines a=rtpmap"):
        read_offer(many("a=rtpmap:1 a/1\r\n", 500, AUDIO + VIDEO), "sendrecv")


def test_aiortc_gets_little_of_a_large_offer() -> None:
    formats = "".join(
        f"a=rtpmap:{n} c{n}/90000\r\n" + f"a=rtcp-fb:{n} nack\r\n" * 5 + f"a=fmtp:{n} x=y\r\n" for n in range(35, 96)
    )
    audio = AUDIO + "".join(f"a={name}:x {n}\r\n" for name in ("ssrc", "extmap", "b") for n in range(100))
    offer = read_offer(HEAD + VIDEO + formats + audio + DATA, "sendrecv")
    assert len(offer.sdp.splitlines()) < 40


def firefox() -> str:
    """As Firefox writes it: the fingerprint for all, a second section on the first one's connection."""
    formats = range(96, 128)
    return "\r\n".join(
        [
            "v=0",
            "o=mozilla...THIS_IS_SDPARTA-99.0 8281473916400341313 0 IN IP4 0.0.0.0",
            "s=-",
            "t=0 0",
            "a=sendrecv",
            f"a=fingerprint:sha-256 {':'.join(['AB'] * 32)}",
            "a=group:BUNDLE 0 1 2",
            "a=ice-options:trickle",
            "a=msid-semantic:WMS *",
            "m=audio 9 UDP/TLS/RTP/SAVPF 109 9 0 8 101",
            "c=IN IP4 0.0.0.0",
            "a=sendrecv",
            "a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level",
            "a=extmap:2/recvonly urn:ietf:params:rtp-hdrext:csrc-audio-level",
            "a=extmap:3 urn:ietf:params:rtp-hdrext:sdes:mid",
            "a=fmtp:109 maxplaybackrate=48000;stereo=1;useinbandfec=1",
            "a=fmtp:101 0-15",
            "a=ice-pwd:f59fce54b8fc6db3eb8b9eb0fa0ee6d5",
            "a=ice-ufrag:1a2b3c4d",
            "a=mid:0",
            "a=msid:{6f2a} {7b1c}",
            "a=rtcp-mux",
            *(
                f"a=rtpmap:{number} {name}"
                for number, name in ((109, "opus/48000/2"), (9, "G722/8000/1"), (0, "PCMU/8000"))
            ),
            "a=setup:actpass",
            "a=ssrc:1234 cname:{9a}",
            f"m=video 0 UDP/TLS/RTP/SAVPF {' '.join(map(str, formats))}",
            "c=IN IP4 0.0.0.0",
            "a=bundle-only",
            "a=sendrecv",
            *(f"a=fmtp:{number} max-fs=12288;max-fr=60" for number in formats),
            "a=mid:1",
            "a=rtcp-mux",
            *(
                f"a=rtcp-fb:{number} {kind}"
                for number in formats
                for kind in ("nack", "nack pli", "ccm fir", "goog-remb", "transport-cc")
            ),
            *(f"a=rtpmap:{number} VP8/90000" for number in formats),
            "m=application 0 UDP/DTLS/SCTP webrtc-datachannel",
            "c=IN IP4 0.0.0.0",
            "a=bundle-only",
            "a=mid:2",
            "a=sctp-port:5000",
            "a=max-message-size:1073741823",
            "",
        ]
    )


def gstreamer() -> str:
    """As webrtcbin writes it: Opus under its first number, names that tell the kind."""
    return "\r\n".join(
        [
            "v=0",
            "o=- 5226451418346837157 0 IN IP4 0.0.0.0",
            "s=-",
            "t=0 0",
            "a=ice-options:trickle",
            "a=group:BUNDLE audio0 video1",
            "m=audio 9 UDP/TLS/RTP/SAVPF 96",
            "c=IN IP4 0.0.0.0",
            "a=setup:actpass",
            "a=ice-ufrag:Jx7s1wFqj2lXyOqNqUzWb6bUnDkHVg+1",
            "a=ice-pwd:3tM0Zc2v+5XGGd6w3uXbo8W8YdRSYN0M",
            "a=rtcp-mux",
            "a=rtcp-rsize",
            "a=sendrecv",
            "a=rtpmap:96 OPUS/48000/2",
            "a=rtcp-fb:96 transport-cc",
            "a=fmtp:96 sprop-maxcapturerate=48000;sprop-stereo=0",
            "a=ssrc:3030220164 msid:user1@host webrtctransceiver0",
            "a=ssrc:3030220164 cname:user1@host",
            "a=mid:audio0",
            f"a=fingerprint:sha-256 {':'.join(['0F'] * 32)}",
            "m=video 0 UDP/TLS/RTP/SAVPF 97",
            "c=IN IP4 0.0.0.0",
            "a=setup:actpass",
            "a=bundle-only",
            "a=rtcp-mux",
            "a=sendonly",
            "a=rtpmap:97 H264/90000",
            "a=mid:video1",
            "",
        ]
    )


def test_firefoxs_offer_with_video_is_taken() -> None:
    offer = read_offer(firefox(), "sendrecv")
    assert (offer.direction, offer.bundle) == ("sendrecv", ("0", "2"))
    assert offer.sdp.count("a=ice-ufrag:1a2b3c4d") == 2  # the data channel lives on the sound's connection
    assert sections_of(answer_to(firefox()))[::2] == ["m=audio 4711", "m=video 0", "m=application 4711"]


def test_gstreamers_offer_with_video_is_taken() -> None:
    assert "a=rtpmap:96 opus/48000/2" in read_offer(gstreamer(), "sendrecv").sdp
    assert sections_of(answer_to(gstreamer())) == ["m=audio 4711", "a=mid:audio0", "m=video 0", "a=mid:video1"]


def test_bounds_are_above_what_browsers_send() -> None:
    """Chromium of 2026 offers 60 video formats with up to 5 kinds of feedback each."""
    assert MAX_ALIKE_OF["rtcp-fb"] >= 60 * 5


def test_an_answer_gets_parameters_for_opus_alone() -> None:
    answer = with_opus_parameters("m=audio 9 x 111\r\na=rtpmap:111 opus/48000/2\r\na=rtpmap:0 PCMU/8000\r\n")
    assert answer.splitlines()[1:4] == [
        "a=rtpmap:111 opus/48000/2",
        "a=fmtp:111 minptime=10;useinbandfec=1;usedtx=1;maxaveragebitrate=64000;stereo=0;sprop-stereo=0",
        "a=ptime:20",
    ]
    assert answer.endswith("a=rtpmap:0 PCMU/8000\r\n")
