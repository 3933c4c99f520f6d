"""`seedvc call`: speak into a microphone, or play a file, and be heard in another voice by way of a server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.commands import UserMistake, note, say
from serve_app.commands.convert import tell
from serve_app.commands.remote import Server
from serve_app.commands.signalling import Message, Signalling, connected
from serve_app.commands.soundcard import FRAME_S, Recording, WavFile, on_devices, on_timer
from webrtc.caller import Caller, CallerStats
from webrtc.files import NotAudio
from webrtc.files.codecs import Samples
from webrtc.ice import IceServer

CONNECT_TIMEOUT_S = 20.0
TAIL_S = 0.5
"""How much longer than the reported delay a call from a file goes on."""
PLAIN_LINE_EVERY_S = 10


def run(args: argparse.Namespace) -> None:
    """Calls until the recording or the call ends, or Ctrl-C is pressed."""
    source = Path(args.source) if args.source else None
    out = Path(args.out) if args.out else None
    if source is not None and source.exists() and not source.is_file():
        raise UserMistake(f"{source} is no file; --in takes a recording that is there as a whole")
    if source is not None and not source.is_file():
        raise UserMistake(f"there is no file {source}")
    if source is not None and not os.access(source, os.R_OK):
        raise UserMistake(f"cannot read {source}: permission denied")
    if out is not None and out.suffix.lower() != ".wav":
        raise UserMistake(f"--out takes a .wav file; got {out.name}")
    if out is not None and not out.parent.is_dir():
        raise UserMistake(f"there is no folder {out.parent} to write {out.name} into")
    with Server(args.server) as server, server.voice(args.voice) as (voice_id, warnings):
        tell(warnings)
        settings = {"voice": voice_id, "mode": args.mode, "steps": args.steps, "bypass": args.bypass}
        try:
            asyncio.run(_call(args, source, out, settings))
        except NotAudio as error:
            raise UserMistake(str(error)) from error
    if out is not None:
        say(f"wrote {out}")


async def _call(args: argparse.Namespace, source: Path | None, out: Path | None, settings: dict[str, Any]) -> None:
    async with AsyncExitStack() as stack:
        signalling = await stack.enter_async_context(connected(args.server))
        caller = Caller(_ice_server(entry) for entry in signalling.ice_servers)
        stack.push_async_callback(caller.close)
        ready = await signalling.start(await caller.offer(), **settings)
        await caller.accept(ready["sdp"])
        stack.push_async_callback(signalling.send, {"type": "stop"})
        ended = _end_of_call()
        display = _Display(settings["voice"], ready["settings"])
        listening = asyncio.create_task(_listen(signalling, display, caller, ended))
        listening.add_done_callback(partial(_follow, ended))
        stack.callback(listening.cancel)
        await _wait_connected(caller, ended)
        delay_s = ready["settings"]["delay_ms"] / 1000
        recording = None if source is None else Recording(source)
        file = None if out is None else stack.enter_context(_written(out))
        card_side = _CardSide(caller, recording, file, delay_s + TAIL_S, ended)
        async with _sound(card_side, args, say=source is None, hear=out is None):
            await ended
    if card_side.failure is not None:
        raise card_side.failure


def _ice_server(entry: Any) -> IceServer:
    return IceServer(tuple(entry["urls"]), entry.get("username"), entry.get("credential"))


def _end_of_call() -> asyncio.Future[None]:
    """Done when the call is over for whatever reason; Ctrl-C hangs up."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C cancels the whole call there, which ends it too
        loop.add_signal_handler(signal.SIGINT, _set, ended)
    return ended


def _set(ended: asyncio.Future[None], failure: BaseException | None = None) -> None:
    if ended.done():
        return
    if failure is None:
        ended.set_result(None)
    else:
        ended.set_exception(failure)


def _follow(ended: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    """Ends the call where a part of it fails, since it would go on in silence."""
    if not task.cancelled() and task.exception() is not None:
        _set(ended, task.exception())


async def _wait_connected(caller: Caller, ended: asyncio.Future[None]) -> None:
    """Returns when sound can flow; UserMistake where it never does."""
    waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(e.wait()) for e in (caller.connected, caller.closed)]
    await asyncio.wait([*waits, ended], timeout=CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if not caller.connected.is_set() and not ended.done():
        raise UserMistake(
            "the server was reached but no sound gets through: a firewall between here and there may need a TURN server"
        )


async def _listen(signalling: Signalling, display: _Display, caller: Caller, ended: asyncio.Future[None]) -> None:
    """Shows what the server reports; ends the call when the server does, or the connection is lost."""
    async for message in signalling.messages():
        if message["type"] == "stats":
            display.show(message, await caller.follow())
        elif message["type"] == "error":
            display.say(f"the server says: {message['message']}")
        elif message["type"] == "end":
            stopped = message["reason"] == "stopped"
            _set(ended, None if stopped else UserMistake(f"the server ended the call: {message['message']}"))
            return
    _set(ended, UserMistake("the connection to the server was lost"))


class _CardSide:
    """What happens in each 20 ms of the sound card: one frame to the other side, and one from there.

    Ends the call when its recording has been said and its answer heard.
    """

    def __init__(
        self,
        caller: Caller,
        recording: Recording | None,
        file: WavFile | None,
        tail_s: float,
        ended: asyncio.Future[None],
    ) -> None:
        self._caller, self._recording, self._file = caller, recording, file
        self._left_s = tail_s
        self._ended, self._loop = ended, asyncio.get_running_loop()
        self.failure: Exception | None = None

    def __call__(self, captured: Samples, now_s: float) -> Samples:
        heard = np.zeros_like(captured)
        if self._ended.done() or self.failure is not None:
            return heard
        try:
            heard = self._caller.hear(now_s)
            self._caller.say(captured if self._recording is None else self._recording.frame())
            if self._file is not None:
                self._file.write(heard)
        except Exception as error:  # this may be the sound card's thread, where nobody else sees it
            self.failure = UserMistake(f"a file failed: {error.strerror}") if isinstance(error, OSError) else error
            self._end()
        if self._recording is not None and self._recording.ended:
            self._left_s -= FRAME_S
            if self._left_s <= 0:
                self._end()
        return heard

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(_set, self._ended)


@asynccontextmanager
async def _sound(card_side: _CardSide, args: argparse.Namespace, *, say: bool, hear: bool) -> AsyncIterator[None]:
    """Keeps the sound card going, on real devices where one is wanted."""
    if say or hear:
        with on_devices(card_side, microphone=args.microphone, speaker=args.speaker, say=say, hear=hear) as latency_s:
            note(f"speak; Ctrl-C hangs up (sound devices add {latency_s * 1000:.0f} ms)")
            yield
        return
    card = asyncio.create_task(on_timer(card_side))
    try:
        yield
    finally:
        card.cancel()


@contextlib.contextmanager
def _written(path: Path) -> Iterator[WavFile]:
    try:
        file = WavFile(path)
    except OSError as error:
        raise UserMistake(f"cannot write {path}: {error.strerror}") from error
    with file:
        yield file


@dataclass
class _Display:
    """One live line on a terminal, plain lines elsewhere."""

    voice: str
    settings: Message
    _shown: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        mode, block_ms, delay_ms = (self.settings[name] for name in ("mode", "block_ms", "delay_ms"))
        heard = "your own voice" if self.settings["bypass"] else self.voice
        self.say(f"in a call as {heard}: {mode} delay, blocks of {block_ms} ms, voice at most {delay_ms} ms behind")

    def say(self, line: str) -> None:
        """A line that stays."""
        note(line, before=_clear())

    def show(self, server: Message, own: CallerStats) -> None:
        """The figures of this second."""
        if sys.stderr.isatty():
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"{_clear()}{stats_line(server, own)[: width - 1]}", end="", file=sys.stderr, flush=True)
        elif self._shown % PLAIN_LINE_EVERY_S == 0:
            self.say(stats_line(server, own))
        self._shown += 1


def _clear() -> str:
    return "\r\x1b[K" if sys.stderr.isatty() else ""


def stats_line(server: Message, own: CallerStats) -> str:
    """A call's figures on one line."""
    buffers_ms = (server["jitter_buffer_ms"] or 0, own.jitter_buffer_ms)
    blocks = (f"{server['blocks'][kind]} {kind}" for kind in ("done", "late", "dropped", "skipped"))
    return ", ".join(
        (
            f"mouth to ear about {server['mouth_to_ear_ms']:.0f} ms",
            f"round trip {_ms(own.rtt_ms)}",
            f"lost {100 * own.loss_out:.1f} % out {100 * own.loss_in:.1f} % in",
            f"jitter buffers {buffers_ms[0]:.0f} + {buffers_ms[1]:.0f} ms",
            f"block {_ms(server['stages_ms'].get('total'))}",
            f"blocks {' '.join(blocks)}",
        )
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
