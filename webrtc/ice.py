"""STUN and TURN servers: as a client is told of them, as aiortc takes them, and coturn's time-limited credentials."""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from aiortc import RTCConfiguration, RTCIceServer

# RFC 7064 and RFC 7065; an IPv6 address stands in brackets
_URL = re.compile(
    r"(?P<scheme>stun|stuns|turn|turns):(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>\d{1,5}))?"
    r"(\?transport=(?P<transport>udp|tcp))?"
)

HANG_UP_S = 5.0
"""How long we wait for a TURN server to give up its relay."""


@dataclass(frozen=True, slots=True)
class IceServer:
    """One STUN or TURN server, with the credential that a TURN server asks for.

    Raises:
        ValueError: no URL, a URL that is none, or a TURN server without a credential.
    """

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("an ICE server has no URL; allowed are stun:, stuns:, turn: and turns: URLs")
        for url in self.urls:
            parts = _URL.fullmatch(url)
            if parts is None or int(parts["port"] or 1) not in range(1, 65536):
                raise ValueError(
                    f"{url!r} is no ICE server URL; allowed are stun:HOST[:PORT], stuns:HOST[:PORT], "
                    "turn:HOST[:PORT][?transport=udp|tcp] and turns:HOST[:PORT][?transport=tcp]"
                )
            if parts["scheme"].startswith("stun") and parts["transport"]:
                raise ValueError(f"{url!r} has a transport, which only TURN URLs may have")
        if self.relays and not (self.username and self.credential):
            raise ValueError(f"the TURN server {self.urls[0]!r} has no username and credential")

    @property
    def relays(self) -> bool:
        """Whether one of the URLs is a TURN server's."""
        return any(url.startswith("turn") for url in self.urls)

    def as_dict(self) -> dict[str, str | list[str]]:
        """The server as a browser's RTCPeerConnection takes it."""
        told: dict[str, str | list[str]] = {"urls": list(self.urls)}
        if self.username is not None and self.credential is not None:
            told |= {"username": self.username, "credential": self.credential}
        return told


def configuration(servers: Iterable[IceServer]) -> RTCConfiguration:
    """For aiortc, which asks a public STUN server unless it is given a list, and fails on IPv6 addresses in URLs."""
    usable = []
    for server in servers:
        urls = [url for url in server.urls if "[" not in url]
        if urls:
            usable.append(RTCIceServer(urls=urls, username=server.username, credential=server.credential))
    return RTCConfiguration(iceServers=usable)


def time_limited_credential(secret: str, user: str, *, now_s: float, valid_s: int) -> tuple[str, str]:
    """Username and credential for coturn's `use-auth-secret`, accepted until `now_s` (Unix time) + `valid_s`.

    Raises:
        ValueError: the secret is empty, so that anybody could make credentials.
    """
    if not secret:
        raise ValueError("the secret shared with the TURN server is empty")
    username = f"{int(now_s) + valid_s}:{user}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()
