"""What a call takes of an offer, and what its answer says about Opus. Pure text work."""

import re
from dataclasses import dataclass
from typing import Literal

from aiortc.sdp import MediaDescription, SessionDescription

from webrtc.rate import MAX_BPS

Direction = Literal["sendrecv", "recvonly", "sendonly"]

MAX_OFFER = 65536  # characters
MAX_CANDIDATES = 64
OPUS = "audio/opus"
# What our decoder and jitter buffer want: aiortc's own answers say nothing, and browsers then send neither FEC nor DTX.
OPUS_PARAMETERS = f"minptime=10;useinbandfec=1;usedtx=1;maxaveragebitrate={MAX_BPS};stereo=0;sprop-stereo=0"
_REVERSE = {"sendrecv": "sendrecv", "recvonly": "sendonly", "sendonly": "recvonly"}


class OfferError(ValueError):
    """An offer that no call can be made of; the message says what came and what is allowed."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer as aiortc is given it."""

    sdp: str
    direction: Direction
    """The answer's, which both sides want."""
    max_bps: int
    """What the client takes at most."""
    mids: tuple[str, ...]


def read_offer(text: str, willing: Direction) -> Offer:
    """Checks an offer to a side that is `willing` to do so much, and adapts it to what aiortc copes with.

    Raises:
        OfferError: it is malformed, has no audio or more than one track of it, has video, or no Opus, or both sides
            only want to send or only want to receive.
    """
    if len(text) > MAX_OFFER:
        raise OfferError(f"the offer has {len(text)} characters; at most {MAX_OFFER} are allowed")
    try:
        description = SessionDescription.parse(text)
    except Exception as error:  # aiortc's parser stumbles in many ways: assertions, lookups, conversions
        raise OfferError("the offer is not a valid session description (SDP)") from error
    audio = _audio(description)
    offered = audio.direction or "sendrecv"  # RFC 8866: what is not said is sendrecv
    direction = _both_want(willing, offered)
    lines = [line for line in map(_adapted, text.splitlines()) if line]
    if audio.direction is None:
        at = next(number for number, line in enumerate(lines) if line.startswith("m=audio"))
        lines.insert(at + 1, "a=sendrecv")
    mids = tuple(media.rtp.muxId for media in description.media)
    return Offer("\r\n".join(lines) + "\r\n", direction, _max_bps(audio), mids)


def with_opus_parameters(answer: str) -> str:
    """The answer, saying that mono Opus with in-band FEC and pauses is welcome."""
    parameters = rf"\g<0>\r\na=fmtp:\g<1> {OPUS_PARAMETERS}\r\na=ptime:20"
    return re.sub(r"^a=rtpmap:(\d+) opus/48000[^\r\n]*", parameters, answer, count=1, flags=re.MULTILINE | re.I)


def _audio(description: SessionDescription) -> MediaDescription:
    """The one audio section."""
    kinds = [media.kind for media in description.media]
    tracks = kinds.count("audio")
    if tracks != 1:
        found = "no audio track" if tracks == 0 else f"{tracks} audio tracks"
        raise OfferError(f"the offer has {found}; it must have exactly one")
    others = set(kinds) - {"audio", "application"}
    if others or kinds.count("application") > 1:
        other = min(others, default="more than one data section")
        raise OfferError(f"the offer has {other}; allowed are one audio track and one data channel section")
    for media in description.media:
        if not (media.ice and media.ice.usernameFragment and media.ice.password):
            raise OfferError("the offer has no ICE user name and password")
        if not (media.dtls and media.dtls.fingerprints):
            raise OfferError("the offer has no DTLS fingerprint and role")
        if len(media.ice_candidates) > MAX_CANDIDATES:
            raise OfferError(f"the offer has more than {MAX_CANDIDATES} candidates")
    audio = next(media for media in description.media if media.kind == "audio")
    if not audio.rtcp_mux:
        raise OfferError("the offer wants RTCP on a port of its own; it must have a=rtcp-mux")
    if not any(codec.mimeType.lower() == OPUS and codec.clockRate == 48000 for codec in audio.rtp.codecs):
        codecs = ", ".join(codec.name for codec in audio.rtp.codecs) or "none"
        raise OfferError(f"the offer's codecs are {codecs}; it must have opus/48000")
    return audio


def _both_want(willing: Direction, offered: str) -> Direction:
    if offered not in _REVERSE:
        raise OfferError(f"the offer's audio is {offered}; nothing would be heard")
    ours = _REVERSE[offered]
    sends = all(way in ("sendrecv", "sendonly") for way in (willing, ours))
    receives = all(way in ("sendrecv", "recvonly") for way in (willing, ours))
    if sends:
        return "sendrecv" if receives else "sendonly"
    if not receives:
        raise OfferError(f"the offer's audio is {offered}; allowed here are {_REVERSE[willing]} and sendrecv")
    return "recvonly"


def _adapted(line: str) -> str | None:
    """A line as aiortc gets it; None: not at all."""
    if line == "a=setup:actpass":
        # aiortc's DTLS client offers ECDSA ciphers only, which a client with an RSA certificate (GStreamer) does not
        # share: so the client is to be the DTLS client.
        return "a=setup:active"
    if line == "a=end-of-candidates":
        # After it aioice reports failure where no known candidate works, though one that it learns from the client's
        # own checks may yet; the time limit for connecting does without it.
        return None
    if line.startswith("a=candidate:") and not is_usable(line):
        return None
    return line


def is_usable(candidate: str) -> bool:
    """Whether a candidate line names an address that packets can be sent to.

    Names under .local (browsers hide addresses so) would have to be looked up by multicast, and only in this network: a
    client there reaches us at our own address anyway.
    """
    parts = candidate.split()
    if len(parts) < 8 or parts[2].lower() != "udp" or parts[4].lower().endswith(".local"):
        return False
    return re.fullmatch(r"[0-9]{1,5}", parts[5]) is not None and 0 < int(parts[5]) < 65536


def _max_bps(audio: MediaDescription) -> int:
    """The least bitrate limit of the offered Opus formats, or our own."""
    limits = [MAX_BPS]
    for codec in audio.rtp.codecs:
        limit = str(codec.parameters.get("maxaveragebitrate", ""))
        if codec.mimeType.lower() == OPUS and limit.isdecimal():
            limits.append(int(limit))
    return min(limits)
