"""An ingress with real signalling, real routing between replicas, and no sound: for tests of who holds a session."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from fastapi import FastAPI

from configs.serve import Limits, RtcArgs
from serve_app.calls.owners import ServeOwners, stopping
from serve_app.calls.rtc import Opened, Rtc, Wanted
from serve_app.http import create_app
from serve_app.voices.folder import FolderVoiceStore
from tests.serve_app.calls.fakes import CallRoom
from tests.serve_app.fakes import EchoBackend, recordings_over


class SilentIngress:
    """The parts of serve_app.ingress.Ingress that live calls need, with fakes behind them."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits the constructor of an ingress
        owners = ServeOwners()
        self._room = CallRoom(RtcArgs(max_calls=2), owner=owners.name)
        self._rtc = Rtc(self._room.calls, owners, list, self._room.args)
        self._retiring = asyncio.create_task(self._retire())

    def __serve_build_asgi_app__(self) -> FastAPI:
        folder = Path(tempfile.mkdtemp(prefix="owned"))
        return create_app(recordings_over(EchoBackend(), FolderVoiceStore(folder), Limits()), self._rtc)

    async def act_on_session(self, session_id: str, wanted: Wanted) -> Opened | None:
        return await self._rtc.act(session_id, wanted)

    async def wait_session(self, session_id: str) -> None:
        await self._room.calls.wait(session_id)

    async def candidates(self, session_id: str) -> int:
        """How many candidates reached the one peer of this replica."""
        return sum(len(peer.candidates) for peer in self._room.peers)

    async def _retire(self) -> None:
        await stopping()
        await self._room.calls.retire()
