"""One recording on its way from the bytes of an upload to the bytes of an answer.

Three steps run at once, joined by short queues: decode -> convert -> encode and hand over. A full queue holds the
step before it back, so memory stays bounded however long the recording, and however slow the reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from serve_app.decoders import Decoded
from serve_app.errors import first_cause
from serve_app.threads import computed
from stages.denoise import NoiseRemover
from stages.types import Samples
from webrtc.files import OutputFormat, RecordingEncoder

_QUEUED = 4


class SourceStream(Protocol):
    """One recording on its way through the stages, in order; see stages.recording."""

    def push(self, samples: Samples) -> AsyncIterator[Samples]:
        """Takes more of the source (float32 mono) and yields what is ready of the result (float32, 22050 Hz)."""

    def finish(self) -> AsyncIterator[Samples]:
        """Yields the rest."""

    def close(self) -> None:
        """Cancels what is still being computed."""


class Conversion:
    """A conversion that runs while its context is open; iterating it gives the encoded result.

    Leaving the context ends everything that belongs to it: decoder, stages, encoder.
    """

    def __init__(
        self,
        sound: Decoded,
        open_stream: Callable[..., SourceStream],
        output_format: OutputFormat,
        seed: int,
        admission: AbstractContextManager[None],
        remove_noise: bool = False,
    ) -> None:
        self.output_format = output_format
        self.seed = seed
        self._sound = sound
        self._open_stream = open_stream
        self._admission = admission
        self._remove_noise = remove_noise
        self._pieces: asyncio.Queue[tuple[Samples, int] | None] = asyncio.Queue(_QUEUED)
        self._encoded: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED)
        self._encoder = RecordingEncoder(output_format)
        self._decoded = asyncio.Event()
        self._context = AsyncExitStack()

    @property
    def media_type(self) -> str:
        """What the encoded bytes are."""
        return self.output_format.media_type

    @property
    def warnings(self) -> list[str]:
        """Warnings so far; complete when the last chunk has come."""
        return self._sound.warnings

    async def decoded_within(self, seconds: float) -> None:
        """Waits until all of the recording is decoded, so that its warnings are complete, but no longer than that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._decoded.wait()

    def exact_header(self) -> bytes:
        """After the last chunk: the header with the true length, of the same size as the one that was sent."""
        return self._encoder.exact_header()

    async def __aenter__(self) -> Self:
        await self._context.enter_async_context(self._running())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._context.__aexit__(kind, error, traceback)

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        while (chunk := await self._encoded.get()) is not None:
            yield chunk

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        with self._admission:
            try:
                async with asyncio.TaskGroup() as group:
                    steps = [group.create_task(self._decode()), group.create_task(self._convert())]
                    yield
                    for step in steps:
                        step.cancel()
            except BaseExceptionGroup as failures:
                raise first_cause(failures) from None

    async def _decode(self) -> None:
        pieces = self._sound.pieces()
        async with aclosing(_cleaned(pieces) if self._remove_noise else pieces) as source:
            async for piece in source:
                await self._pieces.put(piece)
        self._decoded.set()
        await self._pieces.put(None)

    async def _convert(self) -> None:
        first = await self._pieces.get()
        assert first is not None, "a decoder that finds nothing raises"
        stream = self._open_stream(sample_rate=first[1])
        try:
            piece: tuple[Samples, int] | None = first
            while piece is not None:
                await self._encode(stream.push(piece[0]))
                piece = await self._pieces.get()
            await self._encode(stream.finish())
            await self._encoded.put(await computed(self._encoder.finish))
            await self._encoded.put(None)
        finally:
            stream.close()
            self._encoder.close()

    async def _encode(self, waves: AsyncIterator[Samples]) -> None:
        try:
            async for wave in waves:
                if chunk := await computed(self._encoder.feed, wave):
                    await self._encoded.put(chunk)
        finally:
            if isinstance(waves, AsyncGenerator):
                await waves.aclose()  # now, not when the garbage collector finds it


async def _cleaned(pieces: AsyncGenerator[tuple[Samples, int]]) -> AsyncGenerator[tuple[Samples, int]]:
    """The same sound without the noise in it, cleaned in a worker thread as it comes."""
    remover: NoiseRemover | None = None
    async with aclosing(pieces) as source:
        async for samples, rate in source:
            if remover is None:
                remover = await computed(NoiseRemover, rate)
            if len(clean := await computed(remover.push, samples)):
                yield clean, rate
    if remover is not None:
        yield await computed(remover.push, np.zeros(0, np.float32), True), rate
