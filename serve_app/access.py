"""Who may call: the key that a request carries, the name that it calls the server by, the page that it comes from.

What passes has its caller in `scope["state"]["caller"]`.

The name matters because a page may point its own name at this machine, and then is of the same origin as the API. The
page matters because a browser sends sockets and forms anywhere without asking.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.callers.ring import Caller, KeyRing
from serve_app.callers.store import KeysAway, KeyStore
from serve_app.calls.rtc import PREFIX
from serve_app.errors import Refused
from serve_app.forms import header

READING = ("GET", "HEAD", "OPTIONS")
PROBES = frozenset({"/healthz", "/readyz"})
_AUTHORITY = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{0,5}))?")
_KEY_HEADER = b"xi-api-key"
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_SOCKET_PATH = f"{PREFIX}/ws"
_COUNTED_BYTES = 1 << 20
_NO_KEY = (
    "an API key is needed: as 'Authorization: Bearer KEY' or 'xi-api-key: KEY', or for a socket as "
    "access_token in the URL"
)


@dataclass(frozen=True, slots=True)
class Access:
    """What a server asks of its callers. The defaults are those of a server on loopback without a key."""

    key: str = field(default="", repr=False)
    """The operator's."""
    on_loopback: bool = True
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    keys: KeyStore | None = None
    """Those of others."""
    consent_required: bool = False
    ring: KeyRing = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ring", KeyRing(self.key, self.keys))

    def knows_host(self, name: str) -> bool:
        """Whether a request may call this server by that name."""
        if name in self.hosts or is_loopback(name):
            return True
        if self.on_loopback or self.hosts:
            return False
        return self.ring.asks or is_address(name)  # no page can point an address at another machine

    def knows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of that origin may call a server that it reaches as `host`, which may have a port."""
        if origin in self.origins or "*" in self.origins:
            return True
        scheme, _, authority = origin.partition("://")
        place = _place(authority)
        return scheme in ("http", "https") and place is not None and place == _place(host)

    async def caller_of(self, scope: Scope, path: str) -> Caller:
        """Who sends a request; Refused where it carries no known key, KeysAway where that cannot be told now."""
        is_call = scope["type"] == "websocket" and path == _SOCKET_PATH
        caller = await self.ring.caller(_keys_in(scope), tokens=is_call)
        if caller is None:
            raise Refused(401, "invalid_api_key", _NO_KEY, _CHALLENGE)
        return caller


class Guard:
    """Lets through what may call; the rest is Refused before a route sees it.

    `public` are the paths that everybody may read: what a browser loads before it can send a key.
    """

    def __init__(self, app: ASGIApp, access: Access, public: frozenset[str]) -> None:
        self._app, self._access = app, access
        self._public = public | PROBES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or raises Refused; a socket is accepted first where its client is to read why."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
        if path not in PROBES:  # health checks call the server by its address
            self._check_host(scope)
        self._check_origin(scope)
        reading = scope.get("method") == "OPTIONS" or (scope.get("method") in READING and path in self._public)
        if reading:
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._access.caller_of(scope, path)
            await caller.ask()
            if scope["type"] == "http" and not path.startswith(f"{PREFIX}/"):  # calls have limits of their own
                upload = Upload(caller, receive)
                await upload.begin(header(scope, b"content-length"))
                receive = upload.receive
        except Exception:
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
            raise
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    def _check_host(self, scope: Scope) -> None:
        host = header(scope, b"host")
        name = host_name(host)
        if not self._access.knows_host(name):
            message = f"this server does not answer to the name {host[:80]!r}; its config lists others in access.hosts"
            raise Refused(421, "unknown_host", message)

    def _check_origin(self, scope: Scope) -> None:
        """Any page may send a read: the browser does not show it the answer."""
        if scope["type"] == "http" and scope["method"] in READING:
            return
        origin = header(scope, b"origin")
        if origin and not self._access.knows_origin(origin, header(scope, b"host")):
            message = f"pages of {origin[:80]!r} may not call this server; its config lists others in access.origins"
            raise Refused(403, "unknown_origin", message)
        if not origin and header(scope, b"sec-fetch-site") in ("cross-site", "same-site"):
            raise Refused(403, "unknown_origin", "pages of other sites may not call this server")


class Upload:
    """The body of a request, which counts for its caller."""

    def __init__(self, caller: Caller, receive: Receive) -> None:
        self._caller, self._receive = caller, receive
        self._uncounted = 0

    async def begin(self, length: str) -> None:
        """Refused where the body would be more than its sender may send; asked before anything of it is taken."""
        if length.isdecimal() and len(length) < 20:
            await self._caller.upload(0, int(length))

    async def receive(self) -> Message:
        """The next message; Refused where the body has become more than its sender may send."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._uncounted += len(message.get("body", b""))
        is_last = not message.get("more_body", False)
        if self._uncounted >= _COUNTED_BYTES or (is_last and self._uncounted):
            counted, self._uncounted = self._uncounted, 0
            with suppress(KeysAway):  # what has begun goes on
                await self._caller.upload(counted)
        return message


def is_loopback(name: str) -> bool:
    """Whether a name or address always means the machine that uses it."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """The name in a Host header, without its port; empty where the header is missing or malformed."""
    place = _place(host)
    return "" if place is None else place[0].removesuffix(".")


def is_address(name: str) -> bool:
    """Whether it is an IP address, and no name."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _place(authority: str) -> tuple[str, int | None] | None:
    """Host and port; None for anything else. Default ports are left out, since a proxy may have ended TLS."""
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        return None
    port = int(parts["port"] or 80)
    return parts["name"].strip("[]").lower(), None if port in (80, 443) else port


def _keys_in(scope: Scope) -> Iterator[bytes]:
    """Every key that a request carries. A proxy in front may use the Authorization header itself."""
    for name, value in scope["headers"]:
        if name == _KEY_HEADER:
            yield value.strip()
        elif name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield token.strip()
    if scope["type"] == "websocket":  # browsers cannot set headers of a socket
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        yield from (token.encode() for token in query.get("access_token", []))
