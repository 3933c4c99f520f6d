"""Sessions: a call joins one peer with one stream, a listener hears it. Each is one task, from an offer to an end."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from configs.schema import ConfigError
from configs.serve import RtcArgs
from serve_app.callers.ring import Caller
from serve_app.calls.failing import Failing
from serve_app.calls.ladder import Adaptation, Ladder, Wanted
from serve_app.calls.protocol import (
    DEFAULT_MODE,
    Candidate,
    Change,
    End,
    Start,
    Stop,
    Told,
    Wishes,
    parse,
    problem,
)
from serve_app.errors import Refused, Unavailable, VoiceNotFound, refusal
from serve_app.metrics import SessionMetrics
from stages.call import CallStream
from stages.types import Samples
from webrtc.candidates import MAX_CANDIDATES
from webrtc.sdp import Offer

if TYPE_CHECKING:
    from webrtc.peer import PeerStats

log = logging.getLogger("seedvc.calls")

MAX_WAITING_CHANGES = 8
TELL_FAILURES_EVERY_S = 5.0
OPUS_MS = 33.0
"""A packet of 20 ms and the look-ahead of two encoders."""

Tell = Callable[[Told], None]


class CallPeer(Protocol):
    """One media connection: webrtc.peer.Peer."""

    closed: asyncio.Event
    reason: str | None
    failed: bool

    async def answer(self, given: Offer | str) -> str:
        """The answer to an offer, read or as text; ValueError where it cannot be answered."""

    def add_candidate(self, candidate: dict[str, Any] | None) -> None:
        """One more way to reach the client; None: that was the last."""

    def play(self, samples: Samples) -> None:
        """Sends converted sound at 22.05 kHz."""

    def send_message(self, message: Told) -> None:
        """Says something on the data channel, where the client has opened one."""

    def stats(self) -> PeerStats:
        """How the connection is doing."""

    async def close(self) -> None:
        """Hangs up."""


OpenPeer = Callable[..., CallPeer]
OpenStream = Callable[..., CallStream]
MakeFeatures = Callable[[str, Caller], Awaitable[object]]


class Room(Protocol):
    """What a session has around it: calls.registry.Calls."""

    args: RtcArgs
    make_features: MakeFeatures
    open_stream: OpenStream
    open_peer: OpenPeer
    metrics: SessionMetrics
    stats_every_s: float
    adapt_every_s: float
    ladder: Ladder

    def remember(self, call: Call) -> None:
        """Keeps what a call is like now, so that its client can have it again."""


LEFT = End("stopped", "the client left")
FAILED = End("internal_error", "something failed on our side")
REPLACED = End("replaced", "the same client called again")


class Life(IntEnum):
    """Where a session is; it only ever moves on."""

    OPENING = 1
    """Its peer has not answered the offer yet."""
    RUNNING = 2
    ENDING = 3
    """Its end is known; what belongs to it is being closed."""
    OVER = 4


class Session:
    """What a call and a listener have in common: a name, a peer, a task, an end."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.life = Life.OPENING
        self.etag = f'"{secrets.token_hex(8)}"'
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()
        self.peer: CallPeer | None = None
        self.task: asyncio.Task[None] | None = None
        self._early: list[Candidate] = []

    async def answered(self) -> str:
        """The answer to the offer; raises what prevented it. A caller who leaves meanwhile ends the session."""
        assert self.task is not None
        try:
            both: list[asyncio.Future[Any]] = [self.task, self.answer]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.stop(LEFT)
            raise
        if not self.answer.done():
            if self.task.cancelled():
                raise Unavailable("the call was ended before it began; try again soon")
            await self.task  # raises what went wrong
        return self.answer.result()

    def move(self, life: Life) -> bool:
        """Moves on to that part of its life; False where it has come so far already."""
        if life <= self.life:
            return False
        self.life = life
        return True

    def stop(self, end: End) -> None:
        """Ends the session. The first reason counts."""
        if self.move(Life.ENDING):
            self.end.set_result(end)
        if not self.answer.done() and self.task is not None:
            self.task.cancel()

    def finish(self) -> None:
        """Marks the session as over. One without a reason to end has failed."""
        if self.move(Life.ENDING):
            self.end.set_result(FAILED)
        if self.move(Life.OVER):
            self.over.set()

    def add_candidate(self, candidate: Candidate) -> None:
        """One more way to reach the client. A bounded number waits until there is a peer."""
        if self.peer is not None:
            given = candidate.candidate
            self.peer.add_candidate(None if given is None else given.model_dump())
        elif len(self._early) < MAX_CANDIDATES:
            self._early.append(candidate)

    async def answer_with(self, peer: CallPeer, offer: Offer | str) -> None:
        """Has a peer answer the offer; Refused where it cannot."""
        self.peer = peer
        for candidate in self._early:
            self.add_candidate(candidate)
        try:
            self.answer.set_result(await peer.answer(offer))
        except ValueError as error:
            raise Refused(422, "media_failed", f"the offer cannot be answered: {error}") from error
        self.move(Life.RUNNING)

    async def follow_peer(self) -> None:
        """Ends the session when its peer is gone."""
        assert self.peer is not None
        await self.peer.closed.wait()
        lost = End("media_failed", self.peer.reason or "the media connection was lost")
        self.stop(FAILED if self.peer.failed else lost)


class Call(Session):
    """One call: what a peer says goes into a stream, what comes out goes back to the peer and to listeners.

    `listen_id` lets others listen; only `session_id` can end the call.
    """

    def __init__(
        self,
        session_id: str,
        listen_id: str,
        room: Room,
        wishes: Wishes,
        tell: Tell | None,
        caller: Caller,
        replaces: str | None,
    ) -> None:
        super().__init__(session_id)
        self.listen_id, self.caller = listen_id, caller
        self.replaces = replaces
        """The session whose record this call's own will take the place of."""
        self._room, self._wishes, self._tell_socket = room, wishes, tell
        self._adaptation: Adaptation | None = None
        self._stream: CallStream | None = None
        self._changes: asyncio.Queue[tuple[Change, Tell]] = asyncio.Queue(MAX_WAITING_CHANGES)
        self._failing = Failing()
        self._failures: asyncio.Queue[Exception] = asyncio.Queue(1)
        self.listeners: list[Listener] = []

    @property
    def has_socket(self) -> bool:
        """Whether its client has a socket, and so can be told to call again."""
        return self._tell_socket is not None

    @property
    def voice(self) -> str:
        """The id of the voice that it is heard in."""
        return self._wishes.voice if self._stream is None else str(self._stream.settings.voice)

    @property
    def wishes(self) -> Wishes:
        """What its client wants by now: what another call like this one starts with."""
        assert self._stream is not None and self._adaptation is not None
        wanted = self._adaptation.wanted
        return Wishes(
            voice=self.voice,
            mode=wanted.mode,
            block_ms=wanted.block_ms,
            steps=wanted.steps,
            bypass=self._stream.settings.bypass,
            adapt=wanted.adapt,
        )

    @property
    def may_come_back(self) -> bool:
        """Whether its client, when it is over, may want it again: nobody has ended it on purpose."""
        end = self.end.result()
        return end is LEFT or end.reason in ("replaced", "media_failed", "shutting_down", "internal_error")

    @property
    def settings(self) -> Told:
        """What is in effect."""
        assert self._stream is not None and self._adaptation is not None
        settings = self._stream.settings
        return {
            "voice": settings.voice,
            "mode": settings.mode,
            "block_ms": settings.block_ms,
            "steps": settings.steps,
            "bypass": settings.bypass,
            "delay_ms": self._stream.delay_ms,
            "usual_delay_ms": round(self._stream.usual_delay_ms),
            "adapts": self._adaptation.adapts,
            "adapted": self._adaptation.told,
        }

    async def run(self, offer: Offer | str, local: bool) -> None:
        """The whole call: opens both sides, joins them until the end, closes both."""
        room = self._room
        async with AsyncExitStack() as stack:
            await room.make_features(self._wishes.voice, self.caller)
            self._stream, self._adaptation = self._open_stream()
            stack.callback(self._stream.close)
            hear = partial(self.hear, tell=self._tell_channel)
            peer = room.open_peer(on_frame=self._stream.push, on_message=hear, direction="sendrecv", loopback=local)
            stack.push_async_callback(peer.close)
            await self.answer_with(peer, offer)
            room.remember(self)
            try:
                async with asyncio.TaskGroup() as group:
                    parts = [self._play(), self._watch(), self._adapt(), self._follow_changes()]
                    parts += [self._follow_failures(), self.follow_peer()]
                    tasks = [group.create_task(part) for part in parts]
                    end = await asyncio.shield(self.end)
                    for task in tasks:
                        task.cancel()
            except ExceptionGroup as failures:
                log.error("call failed", exc_info=failures, extra={"session": self.session_id})
                end = FAILED
                self.stop(end)
            if failed := self._stream.report.failed:
                log.warning("%d blocks failed", failed, extra={"session": self.session_id})
            self.tell({"type": "end", "reason": end.reason, "message": end.message})
            listeners = list(self.listeners)  # each leaves the list when it ends
            for listener in listeners:
                listener.stop(end)
            for listener in listeners:
                await listener.over.wait()

    def hear(self, text: str, tell: Tell) -> None:
        """Takes a message of the client; an answer to it, or what is wrong with it, goes to `tell`."""
        try:
            message = parse(text)
            match message:
                case Candidate():
                    self.add_candidate(message)
                case Change():
                    self._changes.put_nowait((message, tell))
                case Stop():
                    self.stop(End("stopped", "you ended the call"))
                case Start():
                    raise Refused(409, "invalid_message", "the call has begun; 'start' opens a socket's one call")
        except asyncio.QueueFull:
            tell(problem(Refused(429, "too_many_changes", f"{MAX_WAITING_CHANGES} changes are waiting already")))
        except Refused as error:
            tell(problem(error))

    def tell(self, message: Told) -> None:
        """Says something that the client did not ask for: on its socket, else on the data channel."""
        (self._tell_socket or self._tell_channel)(message)

    def _tell_channel(self, message: Told) -> None:
        if self.peer is not None:
            self.peer.send_message(message)

    async def _play(self) -> None:
        assert self._stream is not None and self.peer is not None
        async for block in self._stream.blocks():
            self.peer.play(block)
            for listener in self.listeners:
                if listener.peer is not None:
                    listener.peer.play(block)

    async def _follow_changes(self) -> None:
        """Applies changes in their order; one that fails leaves things as they were, and the call goes on."""
        assert self._stream is not None and self._adaptation is not None
        while True:
            change, tell = await self._changes.get()
            try:
                if change.voice is not None:
                    await self._room.make_features(change.voice, self.caller)
                wanted = self._adaptation.wanted.changed(change)
                fitted = self._room.ladder.fitted(wanted, asyncio.get_running_loop().time())
                self._stream.change(voice=change.voice, bypass=change.bypass, mode=wanted.mode, **fitted._asdict())
                self._adaptation.wanted = wanted
                self._failing.reset()
            except ConfigError as error:
                tell(problem(Refused(422, "invalid_message", str(error))))
            except Exception as error:
                if refusal(error) is None:
                    log.error("change failed", exc_info=error, extra={"session": self.session_id})
                tell(problem(error))
            else:
                self._room.remember(self)
                tell({"type": "settings", **self.settings})

    async def _follow_failures(self) -> None:
        """Reports failed blocks now and then. First makes features again that a replica did not find."""
        assert self._stream is not None
        is_logged = False
        while True:
            failure = await self._failures.get()
            if isinstance(failure, VoiceNotFound):
                try:
                    await self._room.make_features(failure.voice_id, self.caller)
                except Exception as error:
                    failure = error
            if refusal(failure) is None and not is_logged:
                is_logged = True  # the others are counted
                log.error("a block failed", exc_info=failure, extra={"session": self.session_id})
            self.tell(problem(failure))
            await asyncio.sleep(TELL_FAILURES_EVERY_S)
            if not self._failures.empty():
                self._failures.get_nowait()  # it may be out of date; a failure that lasts comes again at once

    async def _adapt(self) -> None:
        """Follows the ladder of all calls, and tells the client of each change."""
        assert self._adaptation is not None
        room = self._room
        while True:
            await asyncio.sleep(room.adapt_every_s)
            if self._adaptation.step(asyncio.get_running_loop().time()):
                self.tell({"type": "settings", **self.settings})
            room.metrics.rung.set(room.ladder.number)

    def _open_stream(self) -> tuple[CallStream, Adaptation]:
        """A stream with the settings that the client wishes for; Refused where they cannot work."""
        wishes, ladder = self._wishes, self._room.ladder
        mode = wishes.mode or DEFAULT_MODE
        wanted = Wanted(mode, wishes.block_ms, wishes.steps, wishes.adapt)
        fitted = ladder.fitted(wanted, asyncio.get_running_loop().time())
        try:
            stream = self._room.open_stream(wishes.voice, mode=mode, bypass=wishes.bypass, **fitted._asdict())
        except ConfigError as error:
            raise Refused(422, "invalid_message", str(error)) from None
        return stream, Adaptation(ladder, stream, wanted, "the server")

    async def _watch(self) -> None:
        """Tells how the call is doing, and ends it when nobody speaks or it lasts too long."""
        assert self._stream is not None and self.peer is not None
        args, now = self._room.args, asyncio.get_running_loop().time
        began = spoke = now()
        before = self._stream.report
        while True:
            await asyncio.sleep(self._room.stats_every_s)
            report, stats = self._stream.report, self.peer.stats()
            if report.spoken > before.spoken:
                spoke = now()
            self._failing.follow(before, report, now())
            if report.failure is not None and report.failed > before.failed and not self._failures.full():
                self._failures.put_nowait(report.failure)
            before = report
            if (end := self._failing.end(args)) is not None:
                self.stop(end)
            if now() - spoke >= args.idle_timeout_s:
                self.stop(End("idle", f"nobody spoke for {args.idle_timeout_s:g} s"))
            if now() - began >= args.max_call_s:
                self.stop(End("time_limit", f"the call reached the limit of {args.max_call_s:g} s"))
            told = stats_message(stats, self._stream)
            self._room.metrics.follow(
                self.session_id, stats.packets_lost, stats.bitrate_out_bps, told["mouth_to_ear_ms"]
            )
            self.tell(told)


class Listener(Session):
    """Somebody else who hears the converted side of a call."""

    async def run(self, room: Room, offer: Offer | str, local: bool) -> None:
        """Plays until either side ends."""
        async with AsyncExitStack() as stack:
            peer = room.open_peer(on_frame=ignore, on_message=None, direction="sendonly", loopback=local)
            stack.push_async_callback(peer.close)
            await self.answer_with(peer, offer)
            async with asyncio.TaskGroup() as group:
                follower = group.create_task(self.follow_peer())
                await asyncio.shield(self.end)
                follower.cancel()


def stats_message(stats: PeerStats, stream: CallStream) -> Told:
    """The report of each second: the network, the delay, the blocks, the stages."""
    report = stream.report
    told: Told = {
        "type": "stats",
        "rtt_ms": stats.rtt_ms,
        "jitter_ms": stats.jitter_ms,
        "jitter_buffer_ms": stats.jitter_buffer_ms,
        "loss_in": stats.loss_in,
        "loss_out": stats.loss_out,
        "bitrate_in": stats.bitrate_in_bps,
        "bitrate_out": stats.bitrate_out_bps,
        "playout_ms": stats.playout_ms,
        "bridged": stats.bridged,
        "delay_ms": stream.delay_ms,
        "usual_delay_ms": round(stream.usual_delay_ms),
        "blocks": {name: getattr(report, name) for name in ("done", "late", "dropped", "skipped")},
        "stages_ms": {"total": report.block_ms, **report.stages_ms},
    }
    buffers_ms = stats.jitter_buffer_ms + stats.playout_ms
    told["mouth_to_ear_ms"] = round((stats.rtt_ms or 0.0) + buffers_ms + stream.usual_delay_ms + OPUS_MS, 1)
    return told


def ignore(samples: Samples) -> None:
    """Ignores messages of a listener's peer."""
