"""The sessions of this replica, by id.

A session's place is taken before its task exists and given back when the task is over, whatever ended it, so no
place is lost.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from contextvars import Context
from functools import partial
from typing import Any

from configs.schema import MAX_STEPS, MODES, Preset
from configs.serve import RtcArgs
from serve_app.callers.ring import OPERATOR, Caller
from serve_app.calls.ladder import ADAPT_EVERY_S, Ladder, Wanted
from serve_app.calls.protocol import End, Told, Wishes
from serve_app.calls.records import MemoryRecords, Record, Records
from serve_app.calls.session import (
    REPLACED,
    Call,
    Life,
    Listener,
    MakeFeatures,
    OpenPeer,
    OpenStream,
    Session,
    Tell,
)
from serve_app.errors import CallsFull, Refused
from serve_app.metrics import SessionMetrics
from stages.settings import delay_ms, usual_delay_ms
from webrtc.sdp import Offer

log = logging.getLogger("seedvc.calls")

MAX_LISTENERS = 4
STATS_EVERY_S = 1.0


class Calls:
    """The calls of this replica by session id, at most `max_calls`. An id names its replica and cannot be guessed."""

    def __init__(
        self,
        owner: str,
        args: RtcArgs,
        preset: Preset,
        *,
        make_features: MakeFeatures,
        open_stream: OpenStream,
        open_peer: OpenPeer,
        metrics: SessionMetrics,
        records: Records | None = None,
        stats_every_s: float = STATS_EVERY_S,
        adapt_every_s: float = ADAPT_EVERY_S,
    ) -> None:
        self.owner, self.args = owner, args
        self.make_features, self.open_stream, self.open_peer = make_features, open_stream, open_peer
        self.metrics, self.stats_every_s, self.adapt_every_s = metrics, stats_every_s, adapt_every_s
        self.records = records or MemoryRecords()
        self.ladder = Ladder(preset.live, renders_in_one=preset.renders_in_one)
        self._calls: dict[str, Call] = {}
        self._by_listen_id: dict[str, Call] = {}
        self._listeners: dict[str, Listener] = {}
        self._retiring = False

    @property
    def live(self) -> int:
        """How many calls there are."""
        return len(self._calls)

    @property
    def is_retiring(self) -> bool:
        """Whether this replica takes no new calls, as it goes away."""
        return self._retiring

    @property
    def is_full(self) -> bool:
        """Whether no place is free."""
        return self.live >= self.args.max_calls

    @property
    def voices(self) -> set[str]:
        """Those that calls are heard in."""
        return {call.voice for call in self._calls.values()}

    @property
    def modes(self) -> Told:
        """What each mode means for the next call, in milliseconds: `delay_ms` is a bound in mode `lowest`."""
        live, told = self.ladder.live, Told()
        now_s = asyncio.get_running_loop().time()
        for mode in MODES:
            block_ms = self.ladder.fitted(Wanted(mode), now_s).block_ms
            usual_ms = usual_delay_ms(live, mode, block_ms, self.ladder.usual_ms)
            told[mode] = {
                "block_ms": block_ms,
                "delay_ms": delay_ms(live, mode, block_ms),
                "usual_delay_ms": round(usual_ms),
            }
        return told

    @property
    def steps(self) -> Told | None:
        """The usual steps of a call and the bounds; None where the preset renders in one, whatever is asked for."""
        if self.ladder.renders_in_one:
            return None
        return {"usual": self.ladder.live.steps, "fewest": 1, "most": MAX_STEPS}

    def start(
        self,
        wishes: Wishes,
        offer: Offer | str,
        tell: Tell | None = None,
        *,
        local: bool = False,
        caller: Caller = OPERATOR,
        session_id: str | None = None,
        replaces: str | None = None,
        comes_back: bool = False,
    ) -> Call:
        """Starts a call, whose answer `answered` waits for. `tell` gets what the client did not ask for.

        A `local` client runs on this machine, and may be reached there. The voice has to be one of `caller`'s. The
        session has a `session_id` that `new_id` has made. The call that it `replaces` ends, and leaves it its place.
        Where it `comes_back` from another replica, it is no more work than there was.

        Raises:
            CallsFull: no place is free.
        """
        old = self._calls.get(replaces or "")
        if old is not None and old.end.done() and old.end.result() is REPLACED:
            old = None  # its place is given away
        self._require_room(has_place=old is not None, comes_back=comes_back)
        if old is not None:
            old.stop(REPLACED)
        call = Call(session_id or self.new_id(), self.new_id(), self, wishes, tell, caller, replaces)
        self._calls[call.session_id] = call
        self._by_listen_id[call.listen_id] = call
        self.metrics.live.set(self.live)
        self._begin(call, call.run(offer, local))
        return call

    def remember(self, call: Call) -> None:
        """Keeps what a call is like now, so that its client can have it again."""
        self.records.keep(call.session_id, Record(owner=self.owner, wishes=call.wishes, key_id=call.caller.key_id))
        if call.replaces is not None:
            self.records.drop(call.replaces)
            call.replaces = None

    def listen(self, call_id: str, offer: Offer | str, *, local: bool = False) -> Listener:
        """Adds a listener, whose answer `answered` waits for. `call_id` is the listen id or the session id of the call.

        Raises:
            Refused: there is no such call. CallsFull: it has all the listeners it may have.
        """
        call = self.heard_as(call_id)
        if call.life >= Life.ENDING:
            raise no_session(call_id)
        if len(call.listeners) >= MAX_LISTENERS:
            message = f"{MAX_LISTENERS} listeners hear this session, which is the limit"
            raise CallsFull(message, self.args.retry_after_s)
        listener = Listener(self.new_id())
        call.listeners.append(listener)
        self._listeners[listener.session_id] = listener
        listener.end.add_done_callback(lambda _: call.listeners.remove(listener))
        self._begin(listener, listener.run(self, offer, local))
        return listener

    def heard_as(self, call_id: str) -> Call:
        """The call that can be listened to by that id; Refused where there is none."""
        call = self._by_listen_id.get(call_id) or self._calls.get(call_id)
        if call is None:
            raise no_session(call_id)
        return call

    def find(self, session_id: str) -> Session:
        """The call or listener of that id; Refused where there is none."""
        session = self._calls.get(session_id) or self._listeners.get(session_id)
        if session is None:
            raise no_session(session_id)
        return session

    async def wait(self, session_id: str) -> None:
        """Returns when that session is over."""
        session = self._calls.get(session_id)
        if session is not None:
            await session.over.wait()

    async def retire(self) -> None:
        """Takes no new calls and ends those with a socket, whose clients call again.

        The others go on until Serve stops waiting.
        """
        self._retiring = True
        calls = [call for call in self._calls.values() if call.has_socket]
        for call in calls:
            call.stop(End("shutting_down", "this server goes away; call again"))
        for call in calls:
            await call.over.wait()

    def _begin(self, session: Session, life: Coroutine[Any, Any, None]) -> None:
        """Starts a session's task, in a context of its own: it outlives the request that opened it."""
        session.task = asyncio.create_task(life, context=Context())
        session.task.add_done_callback(partial(self._forget, session))

    def _forget(self, session: Session, task: asyncio.Task[None]) -> None:
        self._calls.pop(session.session_id, None)
        self._listeners.pop(session.session_id, None)
        self.metrics.forget(session.session_id)
        self.metrics.live.set(self.live)
        session.finish()
        if isinstance(session, Call):
            self._by_listen_id.pop(session.listen_id)
            (self.records.leave if session.may_come_back else self.records.drop)(session.session_id)
        if not task.cancelled() and (error := task.exception()) is not None and session.answer.done():
            log.error("session failed", exc_info=error, extra={"session": session.session_id})

    def _require_room(self, *, has_place: bool, comes_back: bool) -> None:
        if self._retiring:
            self.metrics.refused.inc()
            raise CallsFull("this server goes away; call again", self.args.retry_after_s)
        if has_place:
            return
        if self.is_full:
            self.metrics.refused.inc()
            message = f"{self.args.max_calls} calls are running, which is the limit; try again soon"
            raise CallsFull(message, self.args.retry_after_s)
        if self._calls and not comes_back and self.ladder.rung(asyncio.get_running_loop().time()).refuses:
            self.metrics.refused.inc()
            message = f"this server falls behind with {self.live} calls and takes no more; try again soon"
            raise CallsFull(message, self.args.retry_after_s)

    def new_id(self) -> str:
        """An id for one session of this replica."""
        return f"{self.owner}~{secrets.token_urlsafe(18)}"


def owner_of(session_id: str) -> str:
    """The replica that a session id names."""
    return session_id.partition("~")[0]


def no_session(session_id: str) -> Refused:
    """The refusal of an id that names nothing (any more)."""
    return Refused(404, "session_not_found", f"there is no session {session_id[:80]!r}; it may have ended")
