"""`seedvc call --server`: the far end is one connection to the server after another, so that a lost call comes back."""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from serve_app.commands import DEFAULT_SERVER, UserMistake
from serve_app.commands.card_side import CardSide, Hold
from serve_app.commands.convert import tell
from serve_app.commands.display import Display, blocks_told, ms
from serve_app.commands.remote import Server
from serve_app.commands.signalling import CallFailed, Message, Signalling, connected
from webrtc.caller import Caller, CallerStats
from webrtc.ice import IceServer

CONNECT_TIMEOUT_S = 20.0
SILENT_AFTER_S = 10.0
"""The server reports each second. Where it is silent for so long, the connection is lost, though nothing tells it."""
GIVE_UP_AFTER_S = 120.0
"""For so long after a loss the call is tried again."""
STEADY_S = 10.0
"""A call that lasted for so long has come back: after it, tries and their time count anew."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[Hold]:
    """Finds the voice on the server, or makes it there for as long as the call lasts."""
    url = args.server or DEFAULT_SERVER
    with Server(url) as server, server.voice(args.voice) as (voice_id, warnings):
        tell(warnings)
        settings = {"voice": voice_id, "bypass": args.bypass}
        settings |= {name: getattr(args, name) for name in ("mode", "steps", "block_ms")}
        settings["adapt"] = False if args.hold else None
        yield Dialer(url, settings).hold


def wait_before(tries: int, told_s: float | None = None) -> float:
    """Seconds until try number `tries` (from 0): as told, else doubling and bounded; spread over callers, who would
    all come at once."""
    wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**tries) if told_s is None else told_s
    return wait_s * (1 + random.random() / 4)


class Dialer:
    """Calls with the same settings, one after the other, until one ends for good."""

    def __init__(self, url: str, settings: Message) -> None:
        self._url, self._settings = url, settings
        self._display = Display()
        self._session: str | None = None
        """Of the last call, while the server may still hold it."""
        self._live_s: float | None = None
        """Since when there was sound in this call, or in the last one."""

    async def hold(self, card_side: CardSide) -> None:
        """Calls, and calls again where a call breaks off; raises why there is no other.

        What never worked is tried again only where the server says when.
        """
        now = asyncio.get_running_loop().time
        lost_s, tries, told = 0.0, 0, ""
        while True:
            live_before_s = self._live_s
            try:
                await self._call(card_side)
                return
            except CallFailed as failure:
                if not failure.passing or (self._live_s is None and failure.retry_after_s is None):
                    raise
                came_back = self._live_s != live_before_s and now() - (self._live_s or 0.0) >= STEADY_S
                if tries == 0 or came_back:
                    lost_s, tries, told = now(), 0, ""
                left_s = lost_s + GIVE_UP_AFTER_S - now()
                if left_s <= 0:
                    told = f"{failure}; the call did not come back within {GIVE_UP_AFTER_S:.0f} s"
                    raise UserMistake(told) from failure
                if str(failure) != told:
                    told = str(failure)
                    self._display.say(f"{told}; trying again for up to {left_s:.0f} s")
                wait_s = wait_before(tries, failure.retry_after_s)
            tries += 1
            await asyncio.sleep(min(wait_s, left_s))

    async def _call(self, card_side: CardSide) -> None:
        """One connection, until this side hangs up; CallFailed where it ends in any other way."""
        async with AsyncExitStack() as stack:
            signalling = await stack.enter_async_context(connected(self._url))
            caller = Caller(_ice_server(entry) for entry in signalling.ice_servers)
            stack.push_async_callback(caller.close)
            replaced = {} if self._session is None else {"replaces": self._session}
            ready = await signalling.start(await caller.offer(), **self._settings, **replaced)
            self._session = ready["session"]
            await caller.accept(ready["sdp"])
            stack.push_async_callback(signalling.send, {"type": "stop"})
            await _wait_connected(caller)
            self._live_s = asyncio.get_running_loop().time()
            settings = ready["settings"]
            self._display.begin(self._settings["voice"], settings)
            if self._settings["steps"] is not None and signalling.hello.get("steps", 1) is None:
                self._display.one_step()
            card_side.connect(caller, settings["delay_ms"] / 1000)
            stack.callback(card_side.disconnect)
            await self._follow(signalling, caller, card_side)

    async def _follow(self, signalling: Signalling, caller: Caller, card_side: CardSide) -> None:
        """Shows what the server reports, until the call ends on that side or the connection is lost."""
        loop = asyncio.get_running_loop()
        lost = CallFailed("connection_lost", "the connection to the server was lost")
        try:
            async with asyncio.timeout(SILENT_AFTER_S) as silence:
                async for message in signalling.messages():
                    silence.reschedule(loop.time() + SILENT_AFTER_S)
                    if message["type"] == "stats":
                        self._display.show(stats_line(message, await caller.follow()))
                    elif message["type"] == "settings":
                        self._display.adapt(message)
                        card_side.delayed(message["delay_ms"] / 1000)
                    elif message["type"] == "error":
                        self._display.say(f"the server says: {message['message']}")
                    elif message["type"] == "end":
                        self._session = None
                        if message["reason"] == "stopped":
                            return
                        raise CallFailed(message["reason"], f"the server ended the call: {message['message']}")
                    if caller.closed.is_set():
                        break
        except TimeoutError:
            raise lost from None
        raise lost


def _ice_server(entry: Any) -> IceServer:
    return IceServer(tuple(entry["urls"]), entry.get("username"), entry.get("credential"))


async def _wait_connected(caller: Caller) -> None:
    """Returns when sound can flow; CallFailed where it never does."""
    waits = [asyncio.create_task(event.wait()) for event in (caller.connected, caller.closed)]
    try:
        await asyncio.wait(waits, timeout=CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if not caller.connected.is_set():
        raise CallFailed(
            "media_failed",
            "the server was reached but no sound gets through: a firewall on the way may need a TURN server",
        )


def stats_line(server: Message, own: CallerStats) -> str:
    """A call's figures on one line."""
    buffers_ms = (server["jitter_buffer_ms"] or 0, own.jitter_buffer_ms)
    return ", ".join(
        (
            f"mouth to ear about {server['mouth_to_ear_ms']:.0f} ms",
            f"round trip {ms(own.rtt_ms)}",
            f"lost {100 * own.loss_out:.1f} % out {100 * own.loss_in:.1f} % in",
            f"jitter buffers {buffers_ms[0]:.0f} + {buffers_ms[1]:.0f} ms",
            f"block {ms(server['stages_ms'].get('total'))}",
            blocks_told(server["blocks"]),
        )
    )
