"""The page's socket: signalling of one call, and all messages to its client."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from fastapi import WebSocket, WebSocketDisconnect

from serve_app.callers.ring import caller_of
from serve_app.calls.protocol import Start, Told, parse, problem, write
from serve_app.calls.rtc import Rtc, is_local
from serve_app.calls.session import LEFT, Call
from serve_app.errors import AtCapacity, Refused, first_cause, refusal
from webrtc.guard import Allowance
from webrtc.peer import MESSAGES_AT_ONCE, MESSAGES_PER_S

log = logging.getLogger("seedvc.rtc")

MAX_UNSENT = 64
CLOSE_NORMAL, CLOSE_REFUSED, CLOSE_FAILED, CLOSE_RESTART, CLOSE_FULL = 1000, 1008, 1011, 1012, 1013
CLOSE_AFTER = {
    "shutting_down": CLOSE_RESTART,
    "conversion_failed": CLOSE_FAILED,
    "internal_error": CLOSE_FAILED,
}
"""How a socket closes after the end of its call, where that was not the usual one."""


class SocketCall:
    """One socket and its one call: when either ends, so does the other."""

    def __init__(self, websocket: WebSocket, rtc: Rtc) -> None:
        self._socket, self._rtc = websocket, rtc
        self._unsent: asyncio.Queue[str] = asyncio.Queue(MAX_UNSENT)

    async def run(self) -> None:
        """Serves the socket until its call is over."""
        code: int | None = CLOSE_NORMAL
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write())
                code = await self._serve(group)
                writer.cancel()
        except* WebSocketDisconnect:
            code = None
        except* Exception as failures:
            error = first_cause(failures)
            assert isinstance(error, Exception)
            if refusal(error) is None:
                log.error("socket failed", exc_info=error)
            self.tell(problem(error))
            code = close_code(error)
        if code is None:
            return
        await self._flush()
        with suppress(WebSocketDisconnect, RuntimeError):  # the client may be gone
            await self._socket.close(code)

    async def _serve(self, group: asyncio.TaskGroup) -> int:
        """The whole call; the code that the socket closes with."""
        self.tell(self._rtc.hello)
        start, local, caller = await self._first(), is_local(self._socket), caller_of(self._socket.scope)
        call = await self._rtc.start(start, self.tell, local=local, caller=caller)
        reader = group.create_task(self._read(call))
        try:
            await call.answered()
            self.tell(ready(call))
            await call.over.wait()
        finally:
            call.stop(LEFT)
            reader.cancel()
        return CLOSE_AFTER.get(call.end.result().reason, CLOSE_NORMAL)

    def tell(self, message: Told) -> None:
        """Queues a message. A client that does not read loses messages."""
        with suppress(asyncio.QueueFull):
            self._unsent.put_nowait(write(message))

    async def _first(self) -> Start:
        limit_s = self._rtc.args.connect_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                message = parse(await self._text())
        except TimeoutError:
            raise Refused(408, "no_start", f"no 'start' came for {limit_s:g} s") from None
        if not isinstance(message, Start):
            raise Refused(409, "invalid_message", f"the first message is {message.type!r}; it must be 'start'")
        return message

    async def _read(self, call: Call) -> None:
        """Hands on what the client says, as rarely as on the data channel. Ends the call when the client leaves."""
        heard, now = Allowance(MESSAGES_PER_S, MESSAGES_AT_ONCE), asyncio.get_running_loop().time
        try:
            while True:
                try:
                    text = await self._text()
                    if heard.take(now()):
                        call.hear(text, self.tell)
                except Refused as error:
                    self.tell(problem(error))
        except WebSocketDisconnect:
            call.stop(LEFT)

    async def _text(self) -> str:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", CLOSE_NORMAL))
        text = message.get("text")
        if text is None:
            raise Refused(415, "invalid_message", "the message is binary; messages are JSON text")
        return str(text)

    async def _write(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._socket.send_text(await self._unsent.get())

    async def _flush(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while not self._unsent.empty():
                await self._socket.send_text(self._unsent.get_nowait())


def ready(call: Call) -> Told:
    """The answer to a 'start'."""
    return {
        "type": "ready",
        "session": call.session_id,
        "listen": call.listen_id,
        "sdp": call.answer.result(),
        "settings": call.settings,
    }


def close_code(error: Exception) -> int:
    """How a socket closes after an error."""
    if isinstance(error, AtCapacity):
        return CLOSE_FULL
    return CLOSE_FAILED if refusal(error) is None else CLOSE_REFUSED
