"""The ingress deployment: HTTP and the Python handle API in front of the graph."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from configs.schema import load_preset
from configs.serve import RtcArgs, ServeArgs
from serve_app import decoders
from serve_app.calls.ice import ice_servers_of, own_ice_servers
from serve_app.calls.owners import ServeOwners, stopping
from serve_app.calls.registry import Calls
from serve_app.calls.rtc import Opened, Rtc, Wanted
from serve_app.calls.stores import open_records
from serve_app.errors import StoreAway
from serve_app.graph.handles import ServeBackend, ServeStages, StageHandle, sign_of_life
from serve_app.graph.listen import listen_at_node
from serve_app.http import create_app
from serve_app.keys import KeyMark, checked_access
from serve_app.metrics import BlockMetrics, SessionMetrics, SessionStoreMetrics
from serve_app.recordings.conversion import SourceStream
from serve_app.recordings.service import Recordings
from serve_app.threads import in_thread
from serve_app.voices.service import TEND_EVERY_S, Voices
from serve_app.voices.stores import open_voice_store
from stages.types import STAGE_NAMES, Samples, as_mono
from webrtc.candidates import Reach
from webrtc.peer import Peer
from webrtc.receive import warm_up

log = logging.getLogger("seedvc.ingress")


class Ingress:
    """Routes at `/`, and `convert`, `stream`, `make_voice` for `serve.get_app_handle("seedvc")`."""

    async def __init__(  # type: ignore[misc]  # Serve awaits the constructor of an ingress
        self,
        args: ServeArgs,
        stages: list[DeploymentHandle[Any]],
        voice_maker: DeploymentHandle[Any],
        key_mark: KeyMark | None,
    ) -> None:
        listen_at_node()
        args.check_ongoing_requests(serve.get_replica_context()._deployment_config.max_ongoing_requests)
        self._access = await asyncio.to_thread(checked_access, args.access, key_mark)
        preset, store = load_preset(args.preset), open_voice_store(args.voices)
        together = stages[0] if args.together else None
        parts = [together.encode, together.diffuse, together.vocode] if together else stages
        transports = (args.encoder.transport, args.diffusion.transport, args.vocoder.transport)
        encoder, diffusion, vocoder = map(StageHandle.of, parts, transports)
        block = StageHandle.of(together.block, "grpc") if together else None
        serve_stages = ServeStages(encoder, diffusion, vocoder, BlockMetrics(), block)
        fingerprint = await voice_maker.fingerprint.remote()
        self._backend = ServeBackend(preset, serve_stages, voice_maker, fingerprint, args.limits.retry_after_s)
        self._voices = Voices(store, self._backend, args.limits)
        self._recordings = Recordings(self._voices, self._backend.streams, args.limits)
        owners = ServeOwners()
        self._calls = Calls(
            owners.name,
            args.rtc,
            preset,
            make_features=self._voices.make_features,
            open_stream=self._backend.call_streams.call,
            open_peer=partial(open_peer, args.rtc),
            metrics=SessionMetrics(),
            records=open_records(args.sessions, SessionStoreMetrics()),
        )
        ice_servers_of(args.rtc)  # a mistake in them fails here, not at the first client
        self._rtc = Rtc(self._calls, owners, partial(ice_servers_of, args.rtc), args.rtc)
        decoders.warm_up()
        await in_thread(warm_up)
        names = ["the stages"] if together else [f"the {stage}" for stage in STAGE_NAMES]
        self._signs_of_life = {
            name: sign_of_life(stage, serve_stages) for name, stage in zip(names, stages, strict=True)
        }
        self._drain = asyncio.create_task(self._retire())
        self._drain.add_done_callback(log_failed_drain)
        self._record_keeping = asyncio.create_task(self._calls.records.run())
        self._record_keeping.add_done_callback(log_failed_records)
        self._tending = asyncio.create_task(self._tend_voices())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._recordings, self._rtc, self._access, self._signs_of_life)

    async def convert(
        self, samples: Samples, sample_rate: int, voice_id: str, *, seed: int = 0, steps: int | None = None
    ) -> Samples:
        """A whole recording (float32 mono) in another voice, float32 at 22.05 kHz."""
        waves = [wave async for wave in self.stream(samples, sample_rate, voice_id, seed=seed, steps=steps)]
        return np.concatenate(waves) if waves else np.zeros(0, np.float32)

    async def stream(
        self,
        samples: Samples,
        sample_rate: int,
        voice_id: str,
        *,
        seed: int = 0,
        steps: int | None = None,
        live: bool = False,
    ) -> AsyncIterator[Samples]:
        """The same, chunk by chunk as they are ready; call it with `handle.options(stream=True)`."""
        samples = as_mono(samples)
        voice = await self._voices.make_features(voice_id)
        with self._recordings.admitted():
            streams = self._backend.streams
            open_stream: Callable[..., SourceStream] = streams.live_recording if live else streams.recording
            stream = open_stream(voice, sample_rate=sample_rate, seed=seed, steps=steps)
            try:
                for start in range(0, len(samples), sample_rate):
                    async for wave in stream.push(samples[start : start + sample_rate]):
                        yield wave
                async for wave in stream.finish():
                    yield wave
            finally:
                stream.close()

    async def make_voice(self, samples: Samples, sample_rate: int, name: str) -> str:
        """Keep a voice made of a reference (float32 mono, 1 to 30 s); its id."""
        record, _ = await self._voices.add_samples(name, as_mono(samples), sample_rate)
        return record.voice_id

    async def act_on_session(self, session_id: str, wanted: Wanted) -> Opened | None:
        """Does to a session of this replica what another replica was asked to do."""
        return await self._rtc.act(session_id, wanted)

    async def _retire(self) -> None:
        await stopping()
        await self._calls.retire()

    async def _tend_voices(self) -> None:
        while True:
            await asyncio.sleep(TEND_EVERY_S)
            try:
                await self._voices.tend(self._calls.voices)
            except StoreAway as error:
                log.warning("voices were not tended: %s", error)
            except Exception:  # the store may come back
                log.exception("voices were not tended")

    async def wait_session(self, session_id: str) -> None:
        """Returns when a session of this replica is over."""
        await self._calls.wait(session_id)


def log_failed_drain(drain: asyncio.Task[None]) -> None:
    """Logs why the drain failed. Without it, this replica takes calls until it goes, and then cuts them off."""
    if not drain.cancelled() and (error := drain.exception()) is not None:
        log.error("calls are not told when this replica goes away", exc_info=error)


def log_failed_records(keeping: asyncio.Task[None]) -> None:
    """Logs why records are no longer written. Without them, a client that comes back has to say what it wants."""
    if not keeping.cancelled() and (error := keeping.exception()) is not None:
        log.error("records of sessions are no longer written", exc_info=error)


def open_peer(args: RtcArgs, *, loopback: bool = False, **options: Any) -> Peer:
    """A media connection as the configuration wants it; `loopback`: to a client that may be on this machine."""
    return Peer(
        own_ice_servers(args),
        reach=Reach(loopback=loopback, private=args.private_addresses),
        connect_timeout_s=args.connect_timeout_s,
        lost_after_s=args.lost_after_s,
        **options,
    )
