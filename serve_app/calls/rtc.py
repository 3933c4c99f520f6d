"""What is done to sessions, wherever they live: on this replica, or on another, which is asked by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any, Protocol

from starlette.requests import HTTPConnection

from configs.serve import RtcArgs
from serve_app.callers.ring import OPERATOR, Caller
from serve_app.calls.meter import Meter
from serve_app.calls.protocol import DEFAULT_MODE, End, Start, Told, Wishes
from serve_app.calls.records import Record
from serve_app.calls.registry import Calls, no_session, owner_of
from serve_app.calls.sdp import check_offer, trickled
from serve_app.calls.session import REPLACED, Call, Session, Tell
from serve_app.errors import Refused, Unavailable
from webrtc.ice import IceServer
from webrtc.sdp import Offer

PREFIX = "/v1/rtc"
IceServers = Callable[[], Sequence[IceServer]]
"""The STUN and TURN servers with fresh credentials."""
REPLACE_S = 2.0
"""How long a client that calls again waits for another replica to end its old call."""


class Owners(Protocol):
    """The replicas that hold sessions."""

    @property
    def name(self) -> str:
        """This one."""

    async def ask(self, owner: str, method: str, *args: Any) -> Any:
        """Calls a method of that replica; of any where it is gone."""

    async def hold(self, method: str, *args: Any) -> None:
        """Calls a method of this replica, as a request that it counts."""


@dataclass(frozen=True, slots=True)
class Patch:
    """More ways to reach the client, as a WHIP client sends them."""

    if_match: str
    fragment: str


@dataclass(frozen=True, slots=True)
class Listen:
    """An offer to hear the converted side."""

    offer: Offer
    local: bool


@dataclass(frozen=True, slots=True)
class HangUp:
    """The end of a session."""

    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Find:
    """Whether a session is there, or a call that can be listened to by this id."""

    to_listen: bool = False


Wanted = Patch | Listen | HangUp | Find


@dataclass(frozen=True, slots=True)
class Opened:
    """A new session, as its client gets to know it."""

    session_id: str
    etag: str
    answer: str
    listen_id: str | None
    """How others listen to it; None for a listener."""


class Rtc:
    """What the routes do, wherever a session lives: here, or on another replica, which is asked by its name."""

    def __init__(self, calls: Calls, owners: Owners, ice_servers: IceServers, args: RtcArgs) -> None:
        self.calls, self.args, self.ice_servers = calls, args, ice_servers
        self._owners, self._meter = owners, Meter(args.retry_after_s)
        self._holds: set[asyncio.Task[None]] = set()

    @property
    def hello(self) -> Told:
        """What a client needs before it calls."""
        return {
            "type": "hello",
            "ice_servers": [server.as_dict() for server in self.ice_servers()],
            "modes": self.calls.modes,
            "steps": self.calls.steps,
            "default_mode": DEFAULT_MODE,
        }

    async def start(self, start: Start, tell: Tell, *, local: bool = False, caller: Caller = OPERATOR) -> Call:
        """Starts the call of a socket. What `start` does not name is as it was in the call that it replaces; that one
        ends, wherever it is.
        """
        offer = _sent_and_received(start)
        if start.replaces is None:
            return await self._metered(start.wishes(None), offer, tell, local=local, caller=caller)
        record = await self._record_of(start.replaces, caller, is_needed=start.voice is None)
        wishes = start.wishes(None if record is None else record.wishes)
        has_ended = await self._end_elsewhere(start.replaces)
        return await self._metered(
            wishes,
            offer,
            tell,
            local=local,
            caller=caller,
            replaces=start.replaces,
            comes_back=has_ended or record is not None,
        )

    async def _metered(
        self,
        wishes: Wishes,
        offer: Offer,
        tell: Tell | None = None,
        *,
        local: bool,
        caller: Caller,
        replaces: str | None = None,
        comes_back: bool = False,
    ) -> Call:
        """Starts a call of this replica, as far as the limits of its caller's key allow."""
        session_id = self.calls.new_id()
        start = partial(
            self.calls.start,
            wishes,
            offer,
            tell,
            local=local,
            caller=caller,
            session_id=session_id,
            replaces=replaces,
            comes_back=comes_back,
        )
        return await self._meter.start(caller, session_id, start, replaces)

    async def _record_of(self, session_id: str, caller: Caller, *, is_needed: bool) -> Record | None:
        """What is known of the session that is replaced; nothing of another key's."""
        try:
            record = await self.calls.records.find(session_id)
        except Unavailable:
            if is_needed:
                raise
            return None  # the client names what it wants
        return record if record is not None and record.key_id == caller.key_id else None

    async def _end_elsewhere(self, session_id: str) -> bool:
        """Ends a session of another replica; False where it was not there, or was not seen to end in time."""
        if owner_of(session_id) == self._owners.name:
            return False
        with suppress(Refused, Unavailable, TimeoutError):
            async with asyncio.timeout(REPLACE_S):
                await self.ask(session_id, HangUp(replaced=True))
                return True
        return False

    async def publish(self, wishes: Wishes, offer: str, *, local: bool = False, caller: Caller = OPERATOR) -> Opened:
        """Starts a call without a socket. It lasts until its client or its media leave."""
        call = await self._metered(wishes, check_offer(offer, "sendrecv"), local=local, caller=caller)
        await call.answered()
        # In a context of its own: Serve ties calls made in a request's context to that request.
        hold = asyncio.create_task(self._owners.hold("wait_session", call.session_id), context=Context())
        self._holds.add(hold)
        hold.add_done_callback(self._holds.discard)
        return opened(call)

    async def ask(self, session_id: str, wanted: Wanted) -> Opened | None:
        """Has the owner of a session do something to it; Refused where owner or session are gone."""
        if owner_of(session_id) == self._owners.name:
            return await self.act(session_id, wanted)
        try:
            answer: Opened | None = await self._owners.ask(owner_of(session_id), "act_on_session", session_id, wanted)
        except Unavailable:
            if await self._is_gone(session_id):
                raise no_session(session_id) from None
            raise
        return answer

    async def _is_gone(self, session_id: str) -> bool:
        """Whether a session's owner, which does not answer, has not written of it lately either."""
        with suppress(Unavailable):
            return await self.calls.records.is_gone(session_id)
        return False

    async def act(self, session_id: str, wanted: Wanted) -> Opened | None:
        """Does it to a session of this replica."""
        match wanted:
            case Listen():
                listener = self.calls.listen(session_id, wanted.offer, local=wanted.local)
                await listener.answered()
                return opened(listener)
            case Find():
                (self.calls.heard_as if wanted.to_listen else self.calls.find)(session_id)
            case HangUp():
                session = self.calls.find(session_id)
                session.stop(REPLACED if wanted.replaced else STOPPED)
                await session.over.wait()
            case Patch():
                session = self.calls.find(session_id)
                if wanted.if_match != session.etag:
                    message = f"If-Match is {wanted.if_match[:40]}; this session's ETag is another"
                    raise Refused(412, "precondition_failed", message)
                for candidate in trickled(wanted.fragment):
                    session.add_candidate(candidate)
        return None


STOPPED = End("stopped", "the call was ended")


def opened(session: Session) -> Opened:
    """An answered session, as its client gets to know it."""
    listen_id = session.listen_id if isinstance(session, Call) else None
    return Opened(session.session_id, session.etag, session.answer.result(), listen_id)


def _sent_and_received(start: Start) -> Offer:
    return check_offer(start.sdp, "sendrecv")


def is_local(connection: HTTPConnection) -> bool:
    """Whether a client is on this machine, as far as can be told: behind a proxy, the proxy is the client."""
    if connection.client is None or {"forwarded", "x-forwarded-for", "x-real-ip"} & set(connection.headers):
        return False
    try:
        return ip_address(connection.client.host).is_loopback
    except ValueError:
        return False
