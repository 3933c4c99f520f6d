"""A client without a sound card: says a recording to a server, keeps what comes back on the same clock, and counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.impair import Network
from serve_app.commands.signalling import Message, Signalling, connected
from serve_app.commands.soundcard import FRAME, FRAME_S, on_timer
from webrtc.caller import Caller, CallerStats
from webrtc.files.codecs import Samples
from webrtc.ice import IceServer

CONNECT_TIMEOUT_S = 20.0
STATS_EVERY_S = 1.0


@dataclass
class Recorded:
    """A call at 48 kHz. Frame n was said in the 20 ms before the moment at which frame n of `heard` begins to play."""

    said: list[Samples] = field(default_factory=list)
    heard: list[Samples] = field(default_factory=list)
    server: list[Message] = field(default_factory=list)
    """The server's reports, one a second."""
    own: list[CallerStats] = field(default_factory=list)
    settings: Message = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    session: str = ""

    @property
    def seconds(self) -> float:
        return len(self.said) * FRAME_S

    def sound(self, since_s: float = 0.0) -> tuple[Samples, Samples]:
        """What was said and what was heard, on one clock: without any delay the two would coincide."""
        first = int(since_s / FRAME_S)
        said, heard = np.concatenate(self.said[first:]), np.concatenate(self.heard[first:])
        return said, np.concatenate((np.zeros(FRAME, np.float32), heard))


@asynccontextmanager
async def calling(
    url: str, source: Callable[[int], Samples], network: Network | None = None, **settings: object
) -> AsyncIterator[Recorded]:
    """A call for as long as the block runs; `source` gives frame number n."""
    recorded = Recorded()
    async with connected(url) as signalling:
        servers = [IceServer(tuple(s["urls"]), s.get("username"), s.get("credential")) for s in signalling.ice_servers]
        caller = Caller(servers)
        try:
            ready = await signalling.start(await caller.offer(), **settings)
            await caller.accept(ready["sdp"])
            recorded.session, recorded.settings = ready["session"], ready["settings"]
            if network is not None:
                network.attach(caller.transport)
            await asyncio.wait_for(caller.connected.wait(), CONNECT_TIMEOUT_S)
            tasks = [
                asyncio.create_task(on_timer(_exchange(caller, source, recorded))),
                asyncio.create_task(_follow(caller, recorded)),
                asyncio.create_task(_listen(signalling, recorded)),
            ]
            try:
                yield recorded
            finally:
                for task in tasks:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task  # raises what a task has failed with
            await signalling.send({"type": "stop"})
        finally:
            await caller.close()


def _exchange(caller: Caller, source: Callable[[int], Samples], recorded: Recorded) -> Any:
    def exchange(captured: Samples, now_s: float) -> Samples:
        heard, said = caller.hear(now_s), source(len(recorded.said))
        caller.say(said)
        recorded.said.append(said)
        recorded.heard.append(heard)
        return heard

    return exchange


async def _follow(caller: Caller, recorded: Recorded) -> None:
    while True:
        await asyncio.sleep(STATS_EVERY_S)
        recorded.own.append(await caller.follow())


async def _listen(signalling: Signalling, recorded: Recorded) -> None:
    async for message in signalling.messages():
        if message["type"] == "stats":
            recorded.server.append(message)
        elif message["type"] in ("error", "end"):
            recorded.refusals.append(message["message"])
