"""What a call uses of an offer, and the answer to the rest of it. Text in, text out.

An offer is read once, line by line, with a bound for everything in it. aiortc gets a short offer of its own, with the
sound and the data channel only: its parser looks through all codecs for each of their attributes, and it knows no
rejected sections. Those are put back into its answer.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from webrtc.candidates import MAX_CANDIDATES
from webrtc.rate import MAX_BPS

Direction = Literal["sendrecv", "recvonly", "sendonly"]

MAX_OFFER = 65536  # characters
MAX_LINES = 2000
MAX_LINE = 4096  # characters
MAX_SECTIONS = 32
MAX_ALIKE = 128
"""Lines of one attribute in one section; a browser's video has sixty codecs."""
MAX_ALIKE_OF: Mapping[str, int] = {
    "rtcp-fb": 512,  # a browser's video has five for each codec
    "candidate": MAX_CANDIDATES,
    "fingerprint": 16,
    "group": 16,
    **dict.fromkeys(("ice-ufrag", "ice-pwd", "mid", "setup"), 1),
}
OPUS = "audio/opus"
# What our decoder and jitter buffer want. aiortc's own answers do not say it; browsers then send neither FEC nor DTX.
OPUS_PARAMETERS = f"minptime=10;useinbandfec=1;usedtx=1;maxaveragebitrate={MAX_BPS};stereo=0;sprop-stereo=0"
SCTP_PORT = 5000  # where an offer names none

_REVERSE = {"sendrecv": "sendrecv", "recvonly": "sendonly", "sendonly": "recvonly"}
_MEDIA = re.compile(
    r"m=(?P<kind>[!-~]+) (?P<port>[0-9]{1,5})(/[0-9]{1,5})? (?P<protocol>[!-~]+) (?P<formats>[!-~]+( [!-~]+)*)"
)
_WORD = re.compile(r"[!-~]{1,256}")
_FINGERPRINT = re.compile(r"(sha-256|sha-384|sha-512) [0-9a-f]{2}(:[0-9a-f]{2})*", re.IGNORECASE)
_RTPMAP = re.compile(r"(?P<format>[0-9]{1,3}) (?P<codec>[!-~]+)")
_OPUS = re.compile(r"opus/48000(/[0-9]{1,2})?", re.IGNORECASE)
_EXTENSION = re.compile(r"(?P<id>[0-9]{1,2})(/[a-z]+)? (?P<uri>[!-~]+)( .*)?")
# The header extensions of sound that aiortc uses: which section a packet belongs to, and how loud it is
_EXTENSIONS = ("urn:ietf:params:rtp-hdrext:sdes:mid", "urn:ietf:params:rtp-hdrext:ssrc-audio-level")
# As a DTLS client, aiortc offers ECDSA ciphers only, and fails with those that have an RSA certificate (GStreamer). So
# the other side becomes the DTLS client.
_SETUP = {"actpass": "active", "active": "active", "passive": "passive"}
_TRANSPORT_LINES = ("a=ice-", "a=fingerprint:", "a=setup:", "a=candidate:", "a=end-of-candidates")
_NO_SDP = "the offer is not a valid session description (SDP)"


class OfferError(ValueError):
    """An offer that no call can be made of; the message says what came and what is allowed."""


@dataclass(frozen=True, slots=True)
class OfferedSection:
    """One media section of an offer, as the answer takes it up."""

    mid: str
    """Empty where it has none."""
    rejection: str | None
    """The section of the answer that rejects it; None where it is wanted."""
    stays: bool
    """Whether it is not wanted, but carries the connection of our sound; the answer then makes it inactive."""
    carrier: int | None
    """Which section of aiortc's offer its candidates belong to; None where they are of no use."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer as it was read."""

    sdp: str = field(repr=False)
    """What aiortc is given: the wanted sections, without candidates."""
    direction: Direction
    """The answer's direction: what both sides want."""
    max_bps: int
    """The highest bitrate that the client takes."""
    sections: tuple[OfferedSection, ...]
    """All of them, in order."""
    bundle: tuple[str, ...]
    """The names of those that share one connection in the answer."""
    main: int
    """The section of `sdp` that names the credentials of this connection."""
    candidates: tuple[tuple[str, int], ...]
    """Candidate lines, with the section of `sdp` that each belongs to."""

    @property
    def mids(self) -> tuple[str, ...]:
        """Names of all sections."""
        return tuple(section.mid for section in self.sections)

    def carrier(self, mid: Any, index: Any) -> int | None:
        """Which section of `sdp` a later candidate belongs to, by the section that it names; None: to none.

        Where it names no section that was offered (fragments of WHIP clients), it belongs to the main one.
        """
        for section in self.sections:
            if section.mid and section.mid == mid:
                return section.carrier
        if isinstance(index, int) and 0 <= index < len(self.sections):
            return self.sections[index].carrier
        return self.main


class _Section:
    """The lines of the session part or of one media section, by attribute."""

    def __init__(self, name: str, media: str | None = None) -> None:
        self.name = name
        self.attributes: dict[str, list[str]] = {}
        self.kind = self.protocol = ""
        self.port = 0
        self.formats: list[str] = []
        if media is not None:
            parts = _MEDIA.fullmatch(media)
            if parts is None:
                raise OfferError(f"{_NO_SDP}: it has {media[:60]!r}; such a line is 'm=KIND PORT PROTOCOL FORMAT ...'")
            self.kind, self.port, self.protocol = parts["kind"].lower(), int(parts["port"]), parts["protocol"]
            self.formats = parts["formats"].split(" ")
            self.name = f"{self.kind[:20]} section"

    def add(self, attribute: str, value: str) -> None:
        values = self.attributes.setdefault(attribute, [])
        limit = MAX_ALIKE_OF.get(attribute, MAX_ALIKE)
        if len(values) == limit:
            lines = "one line" if limit == 1 else f"{limit} lines"
            raise OfferError(f"the offer's {self.name} has more than {lines} a={attribute[:40]}; allowed is no more")
        values.append(value)

    def all(self, attribute: str) -> list[str]:
        return self.attributes.get(attribute, [])

    def has(self, attribute: str) -> bool:
        return attribute in self.attributes

    @property
    def mid(self) -> str:
        return next(iter(self.all("mid")), "")

    @property
    def direction(self) -> str | None:
        return next((way for way in (*_REVERSE, "inactive") if self.has(way)), None)

    @property
    def is_data(self) -> bool:
        """Whether it is for data channels, as today's browsers write it, or older ones (drafts of RFC 8841)."""
        ours = {"UDP/DTLS/SCTP": self.formats == ["webrtc-datachannel"], "DTLS/SCTP": True}
        return self.kind == "application" and ours.get(self.protocol.upper(), False)

    def rejection(self, *, stays: bool = False) -> str:
        """The same line with port 0 (RFC 3264, section 6); where it `stays`, an inactive section with a port."""
        lines = [f"m={self.kind} {9 if stays else 0} {self.protocol} {' '.join(self.formats)}", "c=IN IP4 0.0.0.0"]
        lines += [f"a=mid:{self.mid}"] if self.mid else []
        lines += ["a=inactive"] if "RTP/" in self.protocol else []
        if stays:
            lines += [
                f"a={name}:{value}" for name in ("rtpmap", "fmtp") for value in self.all(name) if _is_plain(value)
            ]
            lines += ["a=rtcp-mux"] if self.has("rtcp-mux") else []
        return "".join(f"{line}\r\n" for line in lines)


class _Description:
    """A session description, read into sections."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_OFFER:
            raise OfferError(f"the offer has {len(text)} characters; at most {MAX_OFFER} are allowed")
        lines = text.split("\n")
        if len(lines) > MAX_LINES:
            raise OfferError(f"the offer has {len(lines)} lines; at most {MAX_LINES} are allowed")
        self.common = _Section("session part")
        self.media: list[_Section] = []
        for line in lines:
            self._take(line.strip())
        mids = [media.mid for media in self.media if media.mid]
        for mid in mids:
            if not _WORD.fullmatch(mid) or len(mid) > 64:
                raise OfferError(f"{_NO_SDP}: it has 'a=mid:{mid[:60]}'; allowed are up to 64 letters and digits")
        if len(set(mids)) < len(mids):
            raise OfferError(f"{_NO_SDP}: two of its sections have the same a=mid; each must have its own")
        named = {media.mid: media for media in self.media if media.mid}
        self._bundles: dict[str, list[_Section]] = {}
        for group in self.common.all("group"):
            semantics, *members = group.split() or [""]
            if semantics == "BUNDLE":
                bundle = [named[mid] for mid in dict.fromkeys(members) if mid in named]
                self._bundles |= {media.mid: bundle for media in bundle if media.mid not in self._bundles}

    def _take(self, line: str) -> None:
        if len(line) > MAX_LINE:
            raise OfferError(f"the offer has a line of {len(line)} characters; at most {MAX_LINE} are allowed")
        if line.startswith("m="):
            if len(self.media) == MAX_SECTIONS:
                raise OfferError(f"the offer has more than {MAX_SECTIONS} media sections; {MAX_SECTIONS} are allowed")
            self.media.append(_Section("", line))
        elif line.startswith("a="):
            attribute, _, value = line[2:].partition(":")
            (self.media[-1] if self.media else self.common).add(attribute, value)

    def bundle_of(self, media: _Section) -> list[_Section]:
        """The sections that share a connection with this one and itself, in the order of their group; else none."""
        return self._bundles.get(media.mid, [])

    def is_rejected(self, media: _Section) -> bool:
        """Whether its port is 0, and it does not use another section's connection from the start (RFC 8843)."""
        return media.port == 0 and not (media.has("bundle-only") and len(self.bundle_of(media)) > 1)

    def transport(self, media: _Section, attribute: str) -> list[str]:
        """An attribute of a section's connection: its own lines, else those of the session part, else of its bundle."""
        for section in (media, self.common, *self.bundle_of(media)):
            if section.has(attribute):
                return section.all(attribute)
        return []


def read_offer(text: str, willing: Direction) -> Offer:
    """Checks an offer, and reads what a call needs of it; `willing` is what this side would do.

    Sections that a call has no use for are rejected one by one in the answer: video, text, more sound than one track.

    Raises:
        OfferError: it is malformed or too large, or no section of it is audio with Opus that can be served: both sides
            only want to send or only want to receive, there are no credentials, or RTCP wants a port of its own.
    """
    description = _Description(text)
    audio, direction = _audio(description, willing)
    data = _data(description, audio)
    wanted = [media for media in description.media if media in (audio, data)]
    bundle = [media for media in description.bundle_of(audio) if media in wanted]
    main = wanted.index(bundle[0] if bundle else audio)
    host = _host(description, audio, wanted)
    carriers = [
        wanted.index(media) if media in wanted else main if media is host else None for media in description.media
    ]
    lines = ["v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0"]
    lines += ["a=ice-lite"] if description.common.has("ice-lite") else []
    lines += [f"a=group:BUNDLE {' '.join(media.mid for media in bundle)}"] if bundle else []
    for media in wanted:
        lines += _audio_lines(description, audio) if media is audio else _data_lines(media)
        lines += _transport_lines(description, media, bundle[0] if media in bundle else media)
    sections = [
        OfferedSection(
            media.mid, None if media in wanted else media.rejection(stays=media is host), media is host, carrier
        )
        for media, carrier in zip(description.media, carriers, strict=True)
    ]
    candidates = [
        (line, carrier)
        for media, carrier in zip(description.media, carriers, strict=True)
        if carrier is not None
        for line in media.all("candidate")
    ]
    return Offer(
        "".join(f"{line}\r\n" for line in lines),
        direction,
        _max_bps(audio),
        tuple(sections),
        tuple(media.mid for media in description.bundle_of(audio) if media in wanted or media is host),
        main,
        tuple(candidates),
    )


def complete_answer(answer: str, offer: Offer) -> str:
    """aiortc's answer with our Opus parameters, the rejected sections in their places, and the whole bundle."""
    head, *wanted = re.split(r"^(?=m=)", with_opus_parameters(answer), flags=re.MULTILINE)
    lines = [line for line in head.splitlines() if not line.startswith("a=group:")]
    if offer.bundle:
        lines.append(f"a=group:BUNDLE {' '.join(offer.bundle)}")
    transport = "".join(f"{line}\r\n" for line in wanted[offer.main].splitlines() if line.startswith(_TRANSPORT_LINES))
    ours = iter(wanted)
    sections = [next(ours) if section.rejection is None else section.rejection for section in offer.sections]
    sections = [text + transport * section.stays for text, section in zip(sections, offer.sections, strict=True)]
    return "".join([*(f"{line}\r\n" for line in lines), *sections])


def with_opus_parameters(answer: str) -> str:
    """The answer, which asks for mono Opus with in-band FEC and DTX."""
    parameters = rf"\g<0>\r\na=fmtp:\g<1> {OPUS_PARAMETERS}\r\na=ptime:20"
    return re.sub(r"^a=rtpmap:(\d+) opus/48000[^\r\n]*", parameters, answer, count=1, flags=re.MULTILINE | re.I)


def _is_plain(value: str) -> bool:
    """Whether the answer may repeat it."""
    return value.isascii() and value.isprintable()


def _audio(description: _Description, willing: Direction) -> tuple[_Section, Direction]:
    """The first audio section that can be served, and the answer's direction."""
    offered = [media for media in description.media if media.kind == "audio"]
    if not offered:
        raise OfferError("the offer has no audio track; it must have exactly one")
    live = [media for media in offered if not description.is_rejected(media)]
    if not live:
        raise OfferError("the offer's audio has port 0, which rejects it; it must have one audio track that is live")
    problems = []
    for media in live:
        try:
            _check_transport(description, media)
            _check_audio(media)
            return media, _both_want(willing, media.direction or description.common.direction or "sendrecv")
        except OfferError as error:
            problems.append(error)
    raise problems[0]


def _data(description: _Description, audio: _Section) -> _Section | None:
    """The first section for data channels that can be served; one that shares the sound's connection goes first."""
    bundled = description.bundle_of(audio)
    found = [media for media in description.media if media.is_data and not description.is_rejected(media)]
    for media in sorted(found, key=lambda media: media not in bundled):
        try:
            _check_transport(description, media)
            _sctp_port(media)
        except OfferError:
            continue
        return media
    return None


def _host(description: _Description, audio: _Section, wanted: list[_Section]) -> _Section | None:
    """The unwanted section whose connection our sound uses from the start, as with the bundle policy max-bundle.

    It may not be rejected: browsers would take down the connection of both. Chromium shows the policy only by naming
    all its addresses there, and none for the sound.
    """
    first = next(iter(description.bundle_of(audio)), audio)
    if first in wanted or first.port == 0:
        return None
    is_shared = description.transport(first, "ice-ufrag") == description.transport(audio, "ice-ufrag")
    all_there = first.has("candidate") and not audio.has("candidate")
    return first if audio.port == 0 or (is_shared and all_there) else None


def _check_transport(description: _Description, media: _Section) -> None:
    for attribute in ("ice-ufrag", "ice-pwd"):
        if not any(map(_WORD.fullmatch, description.transport(media, attribute))):
            raise OfferError("the offer has no ICE user name and password; a=ice-ufrag and a=ice-pwd are needed")
    setup = next(iter(description.transport(media, "setup")), "")
    if not setup or not any(map(_FINGERPRINT.fullmatch, description.transport(media, "fingerprint"))):
        needed = "a=fingerprint with sha-256, sha-384 or sha-512, and a=setup are needed"
        raise OfferError(f"the offer has no DTLS fingerprint and role; {needed}")
    if setup not in _SETUP:
        raise OfferError(f"{_NO_SDP}: it has 'a=setup:{setup[:40]}'; allowed are actpass, active and passive")


def _check_audio(audio: _Section) -> None:
    if "RTP/" not in audio.protocol.upper():
        raise OfferError(f"the offer's audio is {audio.protocol[:40]}; it must be UDP/TLS/RTP/SAVPF")
    if not audio.has("rtcp-mux"):
        raise OfferError("the offer wants RTCP on a port of its own; it must have a=rtcp-mux")
    for rtpmap in audio.all("rtpmap"):
        if not _RTPMAP.fullmatch(rtpmap):
            raise OfferError(f"{_NO_SDP}: it has 'a=rtpmap:{rtpmap[:60]}'; such a line is 'a=rtpmap:FORMAT CODEC/RATE'")
    if _opus_format(audio) is None:
        codecs = ", ".join(rtpmap.partition(" ")[2].partition("/")[0] for rtpmap in audio.all("rtpmap")[:8]) or "none"
        raise OfferError(f"the offer's codecs are {codecs[:200]}; it must have opus/48000, numbered 96 to 127")


def _opus_format(audio: _Section) -> str | None:
    """The number of the first Opus format that the media line lists."""
    for rtpmap in audio.all("rtpmap"):
        parts = _RTPMAP.fullmatch(rtpmap)
        if parts and _OPUS.fullmatch(parts["codec"]) and parts["format"] in audio.formats:
            number = int(parts["format"])
            if 95 < number < 128:  # aiortc answers with others under a number of its own
                return str(number)
    return None


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


def _audio_lines(description: _Description, audio: _Section) -> Iterator[str]:
    number = _opus_format(audio)
    yield f"m=audio 9 UDP/TLS/RTP/SAVPF {number}"
    yield f"a={audio.direction or description.common.direction or 'sendrecv'}"
    yield "a=rtcp-mux"
    yield f"a=rtpmap:{number} opus/48000/2"
    numbers = set[str]()
    for extmap in audio.all("extmap"):
        parts = _EXTENSION.fullmatch(extmap)
        if parts and parts["uri"] in _EXTENSIONS and 0 < int(parts["id"]) < 15 and parts["id"] not in numbers:
            numbers.add(parts["id"])
            if audio.mid or parts["uri"] != _EXTENSIONS[0]:
                yield f"a=extmap:{parts['id']} {parts['uri']}"


def _data_lines(data: _Section) -> Iterator[str]:
    if data.protocol.upper() == "DTLS/SCTP":
        yield f"m=application 9 DTLS/SCTP {_sctp_port(data)}"
        yield f"a=sctpmap:{_sctp_port(data)} webrtc-datachannel 65535"
    else:
        yield "m=application 9 UDP/DTLS/SCTP webrtc-datachannel"
        yield f"a=sctp-port:{_sctp_port(data)}"
    sizes = [size for size in data.all("max-message-size") if re.fullmatch("[0-9]{1,15}", size)]
    yield from (f"a=max-message-size:{size}" for size in sizes[:1])


def _sctp_port(data: _Section) -> int:
    given = data.formats[0] if data.protocol.upper() == "DTLS/SCTP" else next(iter(data.all("sctp-port")), "")
    port = int(given) if re.fullmatch(r"[0-9]{1,5}", given) else None if given else SCTP_PORT
    if port is None or not 0 < port < 65536:
        raise OfferError(f"the offer's SCTP port is {given[:40]!r}; it must be a number from 1 to 65535")
    return port


def _transport_lines(description: _Description, media: _Section, main: _Section) -> Iterator[str]:
    """The lines that aiortc connects by; a section that shares a connection has those of the main one there."""
    yield "c=IN IP4 0.0.0.0"
    if media.mid:
        yield f"a=mid:{media.mid}"
    for attribute in ("ice-ufrag", "ice-pwd"):
        yield f"a={attribute}:{description.transport(main, attribute)[0]}"
    for fingerprint in filter(_FINGERPRINT.fullmatch, description.transport(main, "fingerprint")):
        yield f"a=fingerprint:{fingerprint}"
    yield f"a=setup:{_SETUP[description.transport(main, 'setup')[0]]}"


def _max_bps(audio: _Section) -> int:
    """The bitrate limit of the offered Opus format, or our own."""
    number = _opus_format(audio)
    for fmtp in audio.all("fmtp"):
        given, _, parameters = fmtp.partition(" ")
        limit = re.search(r"(?:^|[; ])maxaveragebitrate=([0-9]{1,9})(?:[; ]|$)", parameters)
        if given == number and limit is not None:
            return min(MAX_BPS, int(limit[1]))
    return MAX_BPS
