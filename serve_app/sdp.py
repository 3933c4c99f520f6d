"""The little that signalling itself reads of session descriptions; what media is made of them is webrtc's affair."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.errors import Refused
from serve_app.messages import MAX_CANDIDATE, Candidate, IceCandidate

_DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
_LINE = re.compile(r"[a-z]=.*")


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer that one call can be made of: exactly one audio section, in Opus."""

    sdp: str
    direction: str

    @classmethod
    def parse(cls, sdp: str) -> Offer:
        """Checks an offer; Refused with 400 where it is no SDP, with 422 where it asks for what there is not."""
        lines = _lines(sdp)
        if not lines or lines[0] != "v=0":
            raise Refused(400, "invalid_offer", "the offer is not SDP; its first line must be 'v=0'")
        starts = [index for index, line in enumerate(lines) if line.startswith("m=")]
        sections = [lines[start:stop] for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True)]
        kinds = [section[0][2:].partition(" ")[0] for section in sections]
        strange = [kind for kind in kinds if kind not in ("audio", "application")]
        if strange:
            raise Refused(
                422, "invalid_offer", f"the offer holds a section of {strange[0][:20]!r}; only audio is taken"
            )
        if kinds.count("audio") != 1:
            raise Refused(422, "invalid_offer", f"the offer holds {kinds.count('audio')} audio sections; one is needed")
        audio = sections[kinds.index("audio")]
        if not any(re.match(r"a=rtpmap:\d+ opus/48000", line, re.IGNORECASE) for line in audio):
            raise Refused(422, "invalid_offer", "the offer's audio holds no Opus, the one codec that is spoken here")
        session = lines[: starts[0]]
        directions = [line[2:] for line in (*audio, *session) if line[2:] in _DIRECTIONS and line.startswith("a=")]
        return cls(sdp, directions[0] if directions else "sendrecv")


def trickled(fragment: str) -> Iterator[Candidate]:
    """The candidates of a trickle-ice-sdpfrag, in order; Refused with 400 where it is none.

    There is one section only, so a fragment that names none, as some clients send, means that one.
    """
    lines = _lines(fragment)
    if not lines or not all(_LINE.fullmatch(line) for line in lines):
        raise Refused(400, "invalid_fragment", "the body is no SDP fragment; its lines have the form 'a=...'")
    mid: str | None = None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "a=mid":
            mid = value
        elif name == "a=candidate" and len(line) <= MAX_CANDIDATE:
            ice = IceCandidate(candidate=line[2:], sdpMid=mid, sdpMLineIndex=0)
            yield Candidate(type="candidate", candidate=ice)
        elif name == "a=end-of-candidates":
            yield Candidate(type="candidate", candidate=None)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
