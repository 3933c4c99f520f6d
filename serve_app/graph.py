"""The three stages behind Serve handles: the calls of pipeline.Stages, with retries and cancelling."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import grpc  # type: ignore[import-untyped]  # ships no stubs
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from configs.schema import Preset
from serve_app.errors import AtCapacity, Unavailable
from serve_app.metrics import BlockMetrics
from serve_app.stores.voices import VoiceNotFound, VoiceStore
from stages.geometry import Geometry
from stages.live import CallSettings, LiveStream, Mode
from stages.offline import FileSampling, FileStream, LiveFileStream
from stages.pipeline import BlockLost, Sampling, Stream
from stages.reference import ReferenceReport
from stages.types import STAGE_NAMES, Block, DiffuseRequest, EncodeRequest, Samples, VocodeRequest, Voice

MAX_ATTEMPTS = 5
RETRY_WAIT_S = 0.5


class StagesUnavailable(Unavailable, BlockLost):
    """The stages did not answer, however often they were asked."""


@dataclass(frozen=True)
class StageHandle:
    """One stage's handles: results of recordings travel as the config says, those of calls by value.

    A block's features are small (benchmarks/blocks.py): by value they are there sooner, and
    what each stage took is known.
    """

    by_value: DeploymentHandle[Any]
    by_reference: DeploymentHandle[Any] | None

    @classmethod
    def of(cls, handle: DeploymentHandle[Any], transport: str) -> StageHandle:
        by_reference = handle.options(_by_reference=True) if transport == "object_store" else None
        return cls(handle.options(_by_reference=False), by_reference)


class Call:
    """One stage's work on one request; knows its source, so a lost chain can be started again from its first stage.

    By reference, a response goes unawaited into the next call and its bytes stay in the object store. By value each
    hop is awaited first: a chain of responses over gRPC can wait for ever when a replica dies (Ray 2.60).
    """

    def __init__(self, stage: StageHandle, requests: tuple[Any, ...], source: Call | None = None) -> None:
        self._stage, self._requests, self.source = stage, requests, source
        self._by_reference = None if requests[0].live else stage.by_reference
        self.took_ms: float | None = None
        """From the source's result to this one's, where each hop is awaited."""
        self.stages_ms: dict[str, float] | None = None
        """What each stage took, where the call was a whole block."""
        self._response: Any = None
        self._hop: asyncio.Task[Any] | None = None
        self.start()

    def start(self) -> None:
        """Send the request, or have it sent when its source is there."""
        source = self.source
        if self._by_reference is None or (source is not None and source._response is None):
            self._hop = asyncio.create_task(self._await_hop(self._by_reference or self._stage.by_value))
        elif source is None:
            self._response = self._by_reference.remote(*self._requests)
        else:
            self._response = self._by_reference.remote(source._response, *self._requests)

    async def value(self) -> Any:
        """The stage's result; the stage's own exception where it failed."""
        if self._response is not None:
            return await self._response
        assert self._hop is not None
        return await asyncio.shield(self._hop)

    def restart(self) -> None:
        """Start the whole chain again."""
        if self.source is not None:
            self.source.restart()
        self._response = self._hop = None  # not cancelled: what a lost call still holds, a sibling may wait for
        self.start()

    def cancel(self) -> None:
        """Give up this call and those before it."""
        self._drop()
        if self.source is not None:
            self.source.cancel()

    def _drop(self) -> None:
        if self._response is not None:
            self._response.cancel()
        if self._hop is not None:
            self._hop.cancel()
        self._response = self._hop = None

    async def _await_hop(self, handle: DeploymentHandle[Any]) -> Any:
        sources = () if self.source is None else (await self.source.value(),)
        started = perf_counter()
        response: Any = handle.remote(*sources, *self._requests)
        try:
            result = await response
            self.took_ms = (perf_counter() - started) * 1000
            if isinstance(result, Block):
                self.stages_ms = result.stages_ms
                return result.samples
            return result
        except asyncio.CancelledError:
            response.cancel()
            raise


@dataclass(frozen=True)
class Plan:
    """The first requests of a block that will be sent as one call."""

    requests: tuple[Any, ...]


class ServeStages:
    """Encoder, Diffusion and Vocoder replicas, called without state: any replica may serve any block.

    Where one deployment is all three, `block` is its handle, and a call's block goes there in one piece.
    """

    def __init__(
        self,
        encoder: StageHandle,
        diffusion: StageHandle,
        vocoder: StageHandle,
        metrics: BlockMetrics,
        block: StageHandle | None = None,
    ) -> None:
        self._encoder, self._diffusion, self._vocoder, self._block = encoder, diffusion, vocoder, block
        self.metrics = metrics

    def encode(self, request: EncodeRequest) -> Call | Plan:
        return Plan((request,)) if request.live and self._block else Call(self._encoder, (request,))

    def diffuse(self, content: Call | Plan, request: DiffuseRequest) -> Call | Plan:
        if isinstance(content, Plan):
            return Plan((*content.requests, request))
        return Call(self._diffusion, (request,), content)

    def vocode(self, mel: Call | Plan, request: VocodeRequest) -> Call:
        if isinstance(mel, Plan):
            assert self._block is not None
            return Call(self._block, (*mel.requests, request))
        return Call(self._vocoder, (request,), mel)

    async def collect(self, wave: Call) -> Samples:
        """Wait for a chain's samples for as long as it takes; deadlines are the caller's, who cancels.

        A chain that lost a replica is started again; blocks carry all they need, so the result is the same.

        Raises:
            StagesUnavailable: the chain failed too often.
        """
        try:
            return await self._collect(wave)
        except (StagesUnavailable, asyncio.CancelledError):
            wave.cancel()
            raise

    def cancel(self, wave: Call) -> None:
        """Cancel all three calls of a chain."""
        wave.cancel()

    def stage_ms(self, wave: Call) -> dict[str, float]:
        """What each hop of a chain took, queue and way included; without the way where one process does it all."""
        if wave.stages_ms is not None:
            return wave.stages_ms
        hops = zip(STAGE_NAMES, (wave.source and wave.source.source, wave.source, wave), strict=True)
        return {stage: hop.took_ms for stage, hop in hops if hop is not None and hop.took_ms is not None}

    async def _collect(self, wave: Call) -> Samples:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                samples: Samples = await wave.value()
                return samples
            except asyncio.CancelledError as error:
                if _is_cancelled():
                    raise
                lost: BaseException = error  # a call that somebody else cancelled: lost, not ours to give up
            except Exception as error:
                if is_too_large(error):
                    raise StagesUnavailable("a result is too large for transport grpc; use object_store") from error
                if not is_lost(error):
                    raise cause_of(error) from None
                lost = error
            if attempt == MAX_ATTEMPTS:
                raise StagesUnavailable(f"a stage did not answer in {MAX_ATTEMPTS} attempts") from lost
            self.metrics.retried.inc()
            await asyncio.sleep(RETRY_WAIT_S * (attempt - 1))
            wave.restart()
        raise AssertionError("unreachable")


def cause_of(error: Exception) -> Exception:
    """What a stage raised, without Ray's wrapping."""
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error


def is_too_large(error: Exception) -> bool:
    """Whether a message went over Serve's gRPC limit (4 MiB), which no retry changes."""
    return isinstance(error, grpc.RpcError) and error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def _is_cancelled() -> bool:
    """Whether the running task itself was asked to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_lost(error: BaseException) -> bool:
    """Whether a call failed for want of a replica (or of room), not because of what was asked."""
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, Exception) and is_lost(error.cause)
    return isinstance(error, RayError | RayServeException | grpc.RpcError)


class ServeBackend:
    """service.Backend over Serve handles."""

    def __init__(
        self,
        preset: Preset,
        stages: ServeStages,
        voice_maker: DeploymentHandle[Any],
        voices: VoiceStore,
        fingerprint: str,
        retry_after_s: int,
    ) -> None:
        self._retry_after_s = retry_after_s
        self._preset, self._stages = preset, stages
        self._voice_maker, self._voices, self._fingerprint = voice_maker, voices, fingerprint
        self._geometry = Geometry.from_settings(preset.live)

    @property
    def fingerprint(self) -> str:
        """Names the weights that make a voice's features."""
        return self._fingerprint

    async def make_voice(self, samples: Samples, sample_rate: int) -> tuple[Voice, list[str], ReferenceReport]:
        """Features of a reference, by a VoiceMaker replica; BadAudio where it cannot serve as one."""
        response: Any = self._voice_maker.make.remote(samples, sample_rate)
        try:
            made: tuple[Voice, list[str], ReferenceReport] = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError as error:
            raise AtCapacity("too many voices are being made; try again soon", self._retry_after_s) from error
        except RayTaskError as error:
            raise cause_of(error) from None
        except (RayError, RayServeException) as error:
            raise Unavailable("the voice maker does not answer; try again soon") from error
        return made

    def open_file(
        self,
        voice_id: str,
        *,
        sample_rate: int,
        seed: int,
        steps: int | None,
        streaming: bool,
    ) -> FileStream:
        """A conversion through the long chunks of recordings."""
        voice = self._voices.features(voice_id, self._fingerprint)
        if voice is None:
            raise VoiceNotFound(voice_id)
        settings = self._preset.file
        sampling = FileSampling(seed, steps or settings.steps, settings.cfg_rate)
        return FileStream(self._stages, voice_id, voice.file.frames, settings, sampling, sample_rate, streaming)

    def open_live(self, voice_id: str, *, sample_rate: int, seed: int, steps: int | None) -> LiveFileStream:
        """A conversion through the blocks of calls; a file has no deadline there either."""
        live = self._preset.live
        sampling = Sampling(seed, steps or live.steps, live.cfg_rate, live.vocoder_past_frames, live.follow_level)
        return LiveFileStream(Stream(self._stages, voice_id, self._geometry, sampling), self._geometry, sample_rate)

    def open_call(
        self,
        voice_id: str,
        *,
        mode: Mode = "lowest",
        block_ms: int | None = None,
        steps: int | None = None,
        bypass: bool = False,
        seed: int = 0,
    ) -> LiveStream:
        """A live call in the running event loop; None: the preset's own. ConfigError where a setting cannot work."""
        live = self._preset.live
        settings = CallSettings.of(live, voice_id, mode=mode, block_ms=block_ms, steps=steps, bypass=bypass)
        return LiveStream(self._stages, live, settings, seed=seed, observe=self._stages.metrics.count)
