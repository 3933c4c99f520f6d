"""The three stages behind Serve handles, with retries and cancelling."""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any, Self

import grpc  # type: ignore[import-untyped]  # ships no stubs
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from configs.schema import Preset
from serve_app.errors import AtCapacity, Unavailable
from serve_app.metrics import BlockMetrics
from serve_app.threads import computed
from stages.reference import ReferenceReport
from stages.streams import Streams
from stages.types import (
    STAGE_NAMES,
    BlockLost,
    DiffuseRequest,
    EncodeRequest,
    RenderedBlock,
    Samples,
    VocodeRequest,
    Voice,
)

MAX_ATTEMPTS = 5
RETRY_WAIT_S = 0.5
FULL_WAIT_S, LONGEST_WAIT_S, FULL_FOR_S = 0.25, 8.0, 120.0
"""Waits for room: the first (each next one doubles), the longest, and the sum."""


class StagesUnavailable(Unavailable, BlockLost):
    """The stages did not answer, however often they were asked."""


ANSWER_COUNTS_S, GIVE_UP_S = 10.0, 10.0
"""How long the answer to a request counts as a sign of life, and the longest wait for one that was asked for."""


class Backoff:
    """Ever longer waits, since clients that come back at once keep a full stage full."""

    def __init__(self) -> None:
        self._next_s, self._left_s = FULL_WAIT_S, FULL_FOR_S

    async def wait(self, refused: BaseException) -> None:
        """Waits; StagesUnavailable where there was no room for too long."""
        if self._left_s <= 0:
            raise StagesUnavailable(f"the stages had no room for {FULL_FOR_S:g} s; try again later") from refused
        wait_s = self._next_s * random.uniform(1.0, 1.5)  # so that requests refused together do not come back together
        self._next_s = min(2 * self._next_s, LONGEST_WAIT_S)
        self._left_s -= wait_s
        await asyncio.sleep(wait_s)


@dataclass(frozen=True)
class StageHandle:
    """One stage's handles: results of recordings travel as the config says, those of calls by value.

    A block's features are small (benchmarks/blocks.py). By value they arrive sooner, and each stage's time is known.
    """

    by_value: DeploymentHandle[Any]
    by_reference: DeploymentHandle[Any] | None

    @classmethod
    def of(cls, handle: DeploymentHandle[Any], transport: str) -> StageHandle:
        by_reference = handle.options(_by_reference=True) if transport == "object_store" else None
        return cls(handle.options(_by_reference=False), by_reference)


class Hop:
    """One stage's work on one request. Knows its source, so a lost chain can start again from its first stage.

    By reference, a response goes unawaited into the next call and its bytes stay in the object store. By value each
    hop is awaited first: a chain of responses over gRPC can wait for ever when a replica dies (Ray 2.60).

    One for a call goes first in the stage, and is refused where there is no room. Others wait and are sent again; the
    results before them are kept.
    """

    def __init__(
        self, stage: StageHandle, requests: tuple[Any, ...], source: Hop | None = None, for_call: bool = False
    ) -> None:
        self._stage, self._requests, self._source, self._for_call = stage, requests, source, for_call
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
        source = self._source
        if self._by_reference is None or (source is not None and source._response is None):
            self._hop = asyncio.create_task(self._await_hop(self._by_reference or self._stage.by_value))
        elif source is None:
            self._response = self._by_reference.remote(*self._requests, self._for_call)
        else:
            self._response = self._by_reference.remote(source._response, *self._requests, self._for_call)

    async def value(self) -> Any:
        """The stage's result; the stage's own exception where it failed."""
        if self._response is not None:
            return await self._response
        assert self._hop is not None
        return await asyncio.shield(self._hop)

    def chain(self) -> list[Hop]:
        """This work and all that it builds on, first stage first."""
        return [*(self._source.chain() if self._source is not None else ()), self]

    def restart(self) -> None:
        """Start the whole chain again."""
        if self._source is not None:
            self._source.restart()
        self._response = self._hop = None  # not cancelled: a sibling may wait for what a lost call still holds
        self.start()

    async def restart_refused(self) -> bool:
        """Starts again from the first call that no replica had room for. False where there is none."""
        is_refused = self._source is not None and await self._source.restart_refused()
        if is_refused or await self._is_refused():
            self._response = self._hop = None
            self.start()
            return True
        return False

    async def _is_refused(self) -> bool:
        """By value, a hop waits for room by itself."""
        if self._response is None:
            return False
        try:
            await self._response._to_object_ref()  # there when a replica has taken the request; fetches nothing
        except Exception as error:
            return is_refused(error)
        return False

    def cancel(self) -> None:
        """Give up this call and those before it."""
        self._drop()
        if self._source is not None:
            self._source.cancel()

    def _drop(self) -> None:
        if self._response is not None:
            self._response.cancel()
        if self._hop is not None:
            self._hop.cancel()
        self._response = self._hop = None

    async def _await_hop(self, handle: DeploymentHandle[Any]) -> Any:
        sources = () if self._source is None else (await self._source.value(),)
        started, backoff = perf_counter(), Backoff()
        while True:
            response: Any = handle.remote(*sources, *self._requests, self._for_call)
            try:
                result = await response
                break
            except asyncio.CancelledError:
                response.cancel()
                raise
            except BackPressureError as error:
                if self._for_call:
                    raise
                await backoff.wait(error)
        self.took_ms = (perf_counter() - started) * 1000
        if isinstance(result, RenderedBlock):
            self.stages_ms = result.stages_ms
            return result.samples
        return result


@dataclass
class Answers:
    """What is known of stages without asking them."""

    last_s: float = -math.inf


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
        self._for_call = False
        self._answers = Answers()

    @property
    def answered_s(self) -> float:
        """When, on the monotonic clock, all three last answered."""
        return self._answers.last_s

    def for_calls(self) -> Self:
        """The same for blocks with a deadline: they go first, and one that finds no room is lost at once."""
        hasty = copy.copy(self)
        hasty._for_call = True
        return hasty

    def encode(self, request: EncodeRequest) -> Hop:
        return self._hop(self._encoder, (request,))

    def render(self, content: Hop, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Hop:
        return self._hop(self._vocoder, (vocode,), self._hop(self._diffusion, (diffuse,), content))

    def block(self, encode: EncodeRequest, diffuse: DiffuseRequest, vocode: VocodeRequest) -> Hop:
        if self._block is not None:
            return self._hop(self._block, (encode, diffuse, vocode))
        return self.render(self.encode(encode), diffuse, vocode)

    async def collect(self, wave: Hop) -> Samples:
        """Waits for the samples of a chain without a limit. A caller with a deadline cancels.

        A chain that lost a replica is started again; blocks carry all they need, so the result is the same. One that
        finds no room waits, and goes on from where it was refused.

        Raises:
            StagesUnavailable: the chain failed too often, or found no room for too long; for calls, at once.
        """
        try:
            return await self._collect(wave)
        except (StagesUnavailable, asyncio.CancelledError):
            wave.cancel()
            raise

    def cancel(self, wave: Hop) -> None:
        """Cancel all three calls of a chain."""
        wave.cancel()

    def stage_ms(self, wave: Hop) -> dict[str, float]:
        """Milliseconds of each hop, with queue and transport. Where one process does all, without transport."""
        if wave.stages_ms is not None:
            return wave.stages_ms
        hops = zip(STAGE_NAMES, wave.chain(), strict=True)
        return {stage: hop.took_ms for stage, hop in hops if hop.took_ms is not None}

    def _hop(self, stage: StageHandle, requests: tuple[Any, ...], source: Hop | None = None) -> Hop:
        return Hop(stage, requests, source, self._for_call)

    async def _collect(self, wave: Hop) -> Samples:
        attempt, backoff = 1, Backoff()
        while True:
            try:
                samples: Samples = await wave.value()
                self._answers.last_s = monotonic()
                return samples
            except asyncio.CancelledError as error:
                if _is_cancelled():
                    raise
                lost: BaseException = error  # somebody else cancelled the call, so it is lost
            except Exception as error:
                if is_refused(error):
                    if self._for_call:
                        raise StagesUnavailable("the stages have no room") from error
                    await backoff.wait(error)
                    if not await wave.restart_refused():
                        wave.restart()
                    continue
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
            attempt += 1


def cause_of(error: Exception) -> Exception:
    """What a stage raised, without Ray's wrapping."""
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error


def is_too_large(error: Exception) -> bool:
    """Whether a message went over Serve's gRPC limit (4 MiB), which no retry changes."""
    return isinstance(error, grpc.RpcError) and error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def is_refused(error: BaseException) -> bool:
    """Whether no replica had room for a call."""
    return isinstance(error, BackPressureError) or (
        isinstance(error, RayTaskError) and isinstance(error.cause, BackPressureError)
    )


def _is_cancelled() -> bool:
    """Whether the running task itself was asked to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_lost(error: BaseException) -> bool:
    """Whether a call failed because its replica is gone, not because of its request."""
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, Exception) and is_lost(error.cause)
    return isinstance(error, RayError | RayServeException | grpc.RpcError)


def sign_of_life(stage: DeploymentHandle[Any], stages: ServeStages) -> Callable[[], Awaitable[None]]:
    """Returns a function that asks a replica of a stage whether it is well, unless the stages have just answered.

    A replica without room for the question is at work, and so is well.
    """

    async def ask() -> None:
        if monotonic() - stages.answered_s < ANSWER_COUNTS_S:
            return
        response: Any = stage.check_health.remote()
        try:
            async with asyncio.timeout(GIVE_UP_S):
                await response
        except BackPressureError:
            pass
        except (TimeoutError, asyncio.CancelledError):
            response.cancel()
            raise

    return ask


class ServeBackend:
    """service.Backend over Serve handles."""

    def __init__(
        self,
        preset: Preset,
        stages: ServeStages,
        voice_maker: DeploymentHandle[Any],
        fingerprint: str,
        retry_after_s: int,
    ) -> None:
        self._retry_after_s = retry_after_s
        self._voice_maker, self._fingerprint = voice_maker, fingerprint
        self.streams = Streams(preset, stages, compute=computed)
        self.call_streams = Streams(preset, stages.for_calls(), stages.metrics.count)

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
