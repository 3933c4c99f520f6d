"""A small real server under the page: its files, a list of voices, calls that echo or are refused by a script."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import suppress
from typing import Any

import uvicorn
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaRelay
from aiortc.sdp import candidate_from_sdp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

import webrtc
from serve_app.uploads import MultipartForm

PAGE = webrtc.__path__[0] + "/page"
Told = dict[str, Any]

HELLO: Told = {
    "type": "hello",
    "ice_servers": [],
    "modes": {
        "lowest": {"block_ms": 120, "delay_ms": 440, "usual_delay_ms": 310},
        "constant": {"block_ms": 180, "delay_ms": 460, "usual_delay_ms": 460},
    },
    "steps": {"usual": 4, "fewest": 1, "most": 100},
    "default_mode": "lowest",
}
STATS: Told = {
    "type": "stats",
    "rtt_ms": 12.0,
    "jitter_ms": 2.0,
    "jitter_buffer_ms": 31.0,
    "loss_in": 0.013,
    "loss_out": 0.0,
    "bitrate_in": 31000,
    "bitrate_out": 42000,
    "playout_ms": 20.0,
    "bridged": 3,
    "delay_ms": 440,
    "usual_delay_ms": 310,
    "mouth_to_ear_ms": 360.0,
    "blocks": {"done": 71, "late": 2, "dropped": 1, "skipped": 9},
    "stages_ms": {"total": 93.0, "encoder": 14.0, "diffusion": 52.0, "vocoder": 27.0},
}


class PageServer:
    """Runs in a thread of its own; what clients said is in `heard`, what next calls meet is in `refusals`.

    `greets` and `answers` are gates: while one is cleared, no `hello`, or no `ready`, goes out.
    """

    def __init__(self) -> None:
        self.voices = [voice("clara"), voice("martin")]
        self.heard: list[Told] = []
        self.reference: Told | None = None
        self.refusals: list[Told] = []
        self.config_refusal: Told | None = None
        self.hello = HELLO
        self.greets, self.answers = threading.Event(), threading.Event()
        self.greets.set()
        self.answers.set()
        self._sockets: set[WebSocket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        config = uvicorn.Config(self._app(), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def said(self, kind: str) -> list[Told]:
        """Messages of that type, in order."""
        return [message for message in self.heard if message["type"] == kind]

    def hang_up(self) -> None:
        """Cuts all sockets without a word, as a dying server does."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(5)

    def end(self, reason: str) -> None:
        """Ends all calls for that reason, as a server does that still has its wits."""
        asyncio.run_coroutine_threadsafe(self._end(reason), self._loop).result(5)

    def tell(self, message: Told) -> None:
        """Says something in all calls that nobody asked for."""
        asyncio.run_coroutine_threadsafe(self._say(message), self._loop).result(5)

    def close(self) -> None:
        """Stops; a second time does nothing."""
        if not self._thread.is_alive():
            return
        self.hang_up()
        self._server.should_exit = True
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve([self._listener]))
        self._loop.close()

    async def _cut(self) -> None:
        for each in list(self._sockets):
            with suppress(RuntimeError):
                await each.close(1011)

    async def _end(self, reason: str) -> None:
        await self._say({"type": "end", "reason": reason, "message": "the server says why"})

    async def _say(self, message: Told) -> None:
        for each in list(self._sockets):
            await each.send_json(message)

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/voices", self._list),
                Route("/v1/voices/add", self._add, methods=["POST"]),
                Route("/v1/voices/{voice_id}", self._delete, methods=["DELETE"]),
                Route("/v1/models", self._models),
                Route("/v1/rtc/config", self._config),
                WebSocketRoute("/v1/rtc/ws", self._call),
                Route("/{name:path}", self._file),
            ]
        )

    async def _file(self, request: Request) -> Response:
        return FileResponse(f"{PAGE}/{request.path_params['name'] or 'index.html'}")

    async def _list(self, request: Request) -> Response:
        return JSONResponse({"voices": self.voices})

    async def _models(self, request: Request) -> Response:
        return JSONResponse([])

    async def _add(self, request: Request) -> Response:
        fields: dict[str, str] = {}
        sizes = []
        async for part in MultipartForm(request.headers["content-type"], request.stream()).parts():
            if part.name == "files":
                sizes.append(sum([len(data) async for data in part.chunks()]))
            else:
                fields[part.name] = await part.text()
        self.heard.append({"type": "upload", "name": fields["name"], "sizes": sizes})
        if "consent" in fields:
            self.heard.append({"type": "consent", "value": fields["consent"]})
        if "remove_background_noise" in fields:
            self.heard.append({"type": "clean", "value": fields["remove_background_noise"]})
        self.voices.append(voice(f"v{len(self.voices)}", fields["name"], own=True))
        return JSONResponse({"voice_id": self.voices[-1]["voice_id"], "reference": self.reference})

    async def _delete(self, request: Request) -> Response:
        self.voices = [each for each in self.voices if each["voice_id"] != request.path_params["voice_id"]]
        return JSONResponse({"status": "ok"})

    async def _config(self, request: Request) -> Response:
        if self.config_refusal is not None:
            return JSONResponse({"detail": self.config_refusal}, 503)
        return JSONResponse(self.hello)

    async def _call(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self._sockets.add(websocket)
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        telling: asyncio.Task[None] | None = None
        try:
            await _opened(self.greets)
            await websocket.send_json(self.hello)
            start = await self._hear(websocket)
            await _opened(self.answers)
            if self.refusals:
                await websocket.send_json({"type": "error", **self.refusals.pop(0)})
                return
            settings = {key: start[key] for key in ("voice", "bypass")}
            settings |= {
                "mode": start["mode"] or "lowest",
                "steps": start["steps"] or 2,
                "block_ms": 120,
                "delay_ms": 310,
            }
            answer = await self._answer(peer, start["sdp"], settings)
            await websocket.send_json({"type": "ready", "session": "s1", "sdp": answer, "settings": settings})
            telling = asyncio.create_task(_tell(websocket))
            while (message := await self._hear(websocket))["type"] != "stop":
                if message["type"] == "candidate" and message["candidate"] and message["candidate"]["candidate"]:
                    candidate = candidate_from_sdp(message["candidate"]["candidate"].partition(":")[2])
                    candidate.sdpMid = message["candidate"]["sdpMid"]
                    await peer.addIceCandidate(candidate)
        except (WebSocketDisconnect, RuntimeError):
            pass  # the client left, or a test cut the line
        finally:
            self._sockets.discard(websocket)
            if telling:
                telling.cancel()
            await peer.close()
            with suppress(RuntimeError):
                await websocket.close()

    async def _hear(self, websocket: WebSocket) -> Told:
        message: Told = await websocket.receive_json()
        self.heard.append(message)
        return message

    async def _answer(self, peer: RTCPeerConnection, offer: str, settings: Told) -> str:
        relay = MediaRelay()
        peer.on("track", lambda track: peer.addTrack(relay.subscribe(track)))

        def control(channel: RTCDataChannel) -> None:
            def take(text: str) -> None:
                change = json.loads(text)
                self.heard.append(change)
                settings.update({key: value for key, value in change.items() if key != "type"})
                channel.send(json.dumps({"type": "settings", **settings}))

            channel.on("message", take)

        peer.on("datachannel", control)
        await peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        return str(peer.localDescription.sdp)


def voice(voice_id: str, name: str | None = None, *, own: bool = False) -> Told:
    """A voice as GET /v1/voices lists it."""
    return {
        "voice_id": voice_id,
        "name": name or voice_id.title(),
        "category": "cloned" if own else "premade",
        "description": "",
        "labels": {},
        "is_owner": own,
    }


async def _opened(gate: threading.Event) -> None:
    while not gate.is_set():  # noqa: ASYNC110 - set from the test's thread
        await asyncio.sleep(0.02)


async def _tell(websocket: WebSocket) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):
        while True:
            await websocket.send_json(STATS)
            await asyncio.sleep(0.3)
