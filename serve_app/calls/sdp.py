"""Session descriptions as signalling meets them; what media is made of them is webrtc.sdp's affair."""

from __future__ import annotations

import re
from collections.abc import Iterator

from serve_app.calls.protocol import MAX_CANDIDATE, Candidate, IceCandidate
from serve_app.errors import Refused
from webrtc.sdp import Direction, Offer, OfferError, read_offer

_LINE = re.compile(r"[a-z]=.*")


def check_offer(sdp: str, willing: Direction) -> Offer:
    """An offer, read; Refused where no call can be made of it: with 400 where it is no SDP, else with 422."""
    if not sdp.startswith("v=0"):
        raise Refused(400, "invalid_offer", "the offer is not SDP; its first line must be 'v=0'")
    try:
        offer = read_offer(sdp, willing)
    except OfferError as error:
        raise Refused(422, "invalid_offer", str(error)) from None
    if willing == "sendrecv" and offer.direction == "sendonly":
        raise Refused(422, "invalid_offer", "the offer's audio is recvonly; a speaker offers sendrecv or sendonly")
    return offer


def trickled(fragment: str) -> Iterator[Candidate]:
    """The candidates of a trickle-ice-sdpfrag, in order; Refused with 400 where it is none.

    A fragment that names no section, as some clients send, means the one that the call is held on.
    """
    lines = [line.strip() for line in fragment.splitlines() if line.strip()]
    if not lines or not all(_LINE.fullmatch(line) for line in lines):
        raise Refused(400, "invalid_fragment", "the body is no SDP fragment; its lines have the form 'a=...'")
    mid: str | None = None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "a=mid":
            mid = value
        elif name == "a=candidate" and len(line) <= MAX_CANDIDATE:
            ice = IceCandidate(candidate=line[2:], sdpMid=mid)
            yield Candidate(type="candidate", candidate=ice)
        elif name == "a=end-of-candidates":
            yield Candidate(type="candidate", candidate=None)
