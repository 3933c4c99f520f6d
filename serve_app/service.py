"""What HTTP, handles and command line share: voices are added, recordings are converted. Knows no web framework."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
import soxr

from configs.serve import Limits
from serve_app.conversion import LENGTH_TOLERANCE_S, Conversion, Decoded, in_thread
from serve_app.errors import AtCapacity, FieldProblem, InvalidFields
from serve_app.places import Place, slowest_of
from serve_app.stores.voices import (
    InvalidVoiceId,
    NotStored,
    VoiceNotFound,
    VoiceRecord,
    VoiceStore,
    as_stored,
    new_voice_id,
)
from stages.denoise import without_noise
from stages.reference import SEARCHED_S, ReferenceReport, check_reference, spoken
from stages.types import BadAudio, Samples, Voice
from webrtc.files import OUTPUT_FORMATS

_REFERENCES_AT_ONCE = 2
"""That are decoded and searched for speech, in up to 200 MB each; conversions are bounded by `max_conversions`."""
_REFERENCES_WAITING = 16
_MAX_REFERENCE_HZ = 48_000
DEFAULT_OUTPUT_FORMAT = "mp3_44100_128"
MAX_SEED = 2**32 - 1
TEND_EVERY_S = 15.0
LEAST_EXPIRY_S = 60
"""Time enough to be renewed twice, or to be used at all."""
MOST_EXPIRY_S = 86400
MODEL_IDS = ("seedvc", "eleven_english_sts_v2", "eleven_multilingual_sts_v2")
"""Our one model, and the names that ElevenLabs clients call it by."""


class FileStream(Protocol):
    """One recording on its way through the stages, in order."""

    def push(self, samples: Samples) -> AsyncIterator[Samples]:
        """Takes more of the source (float32 mono) and yields what is ready of the result (float32, 22050 Hz)."""

    def finish(self) -> AsyncIterator[Samples]:
        """Yields the rest."""

    def close(self) -> None:
        """Cancels what is still being computed."""


class Backend(Protocol):
    """Who computes: the stages in this process, or their replicas behind Serve handles."""

    @property
    def fingerprint(self) -> str:
        """Names the weights that make a voice's features."""

    async def make_voice(self, samples: Samples, sample_rate: int) -> tuple[Voice, list[str], ReferenceReport]:
        """Features of a reference, warnings, and how good it is; BadAudio where it cannot serve as one."""

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

    def open_live(self, voice_id: str, *, sample_rate: int, seed: int, steps: int | None) -> FileStream:
        """A conversion through the blocks of calls."""


class Service:
    """Adds voices and converts recordings, within limits."""

    def __init__(self, backend: Backend, voices: VoiceStore, limits: Limits) -> None:
        self.backend = backend
        self.voices = voices
        self.limits = limits
        self._running: dict[object, Place | None] = {}
        self._in_use: Counter[str] = Counter()
        self._feature_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._adding = 0
        self._preparing_references = asyncio.Semaphore(_REFERENCES_AT_ONCE)

    async def add_voice(
        self,
        name: str,
        files: Sequence[AsyncIterator[bytes] | bytes],
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        expires_s: int | None = None,
        remove_noise: bool = False,
    ) -> tuple[VoiceRecord, list[str]]:
        """Makes a voice from one or more recordings, joined in their order, and keeps it; also returns warnings."""
        if self._adding >= _REFERENCES_WAITING:
            message = f"{self._adding} voices are being added, which is the limit; try again soon"
            raise AtCapacity(message, self.limits.retry_after_s, "too_many_concurrent_requests")
        self._adding += 1
        try:
            async with self._preparing_references:
                samples, sample_rate, warnings = await self._reference(files)
                samples, sample_rate, more = await self._prepared(samples, sample_rate, remove_noise)
            record, told = await self._keep(name, samples, sample_rate, description, labels, expires_s)
        finally:
            self._adding -= 1
        return record, [*warnings, *more, *told]

    async def add_samples(self, name: str, samples: Samples, sample_rate: int) -> tuple[VoiceRecord, list[str]]:
        """Makes a voice from samples that are already decoded, and keeps it; also returns warnings."""
        async with self._preparing_references:
            samples, sample_rate, warnings = await self._prepared(samples, sample_rate)
        record, told = await self._keep(name, samples, sample_rate)
        return record, [*warnings, *told]

    async def _prepared(
        self, samples: Samples, sample_rate: int, remove_noise: bool = False
    ) -> tuple[Samples, int, list[str]]:
        """What a voice is made of, as the store keeps it, its rate, and warnings."""
        limit_s = self.limits.max_reference_s
        warnings: list[str] = []
        if len(samples) > (limit_s + LENGTH_TOLERANCE_S) * sample_rate:
            samples, sample_rate, warnings = await in_thread(spoken, samples, sample_rate, limit_s)
        samples = samples[: round(limit_s * sample_rate)]
        if remove_noise:
            samples = await in_thread(without_noise, samples, sample_rate)
        samples = as_stored(samples)
        if len(samples) < self.limits.min_reference_s * sample_rate:
            got_s = len(samples) / sample_rate
            message = f"the reference is {got_s:.2f} s long; at least {self.limits.min_reference_s:g} s are needed"
            raise BadAudio("too_short", message)
        await in_thread(check_reference, samples, sample_rate)  # here: Serve logs what a replica refuses as its failure
        return samples, sample_rate, warnings

    async def _keep(
        self,
        name: str,
        samples: Samples,
        sample_rate: int,
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        expires_s: int | None = None,
    ) -> tuple[VoiceRecord, list[str]]:
        """A new voice of what was prepared, and warnings; with `expires_s`, forgotten when unused for so long."""
        voice, warnings, report = await self.backend.make_voice(samples, sample_rate)
        record = VoiceRecord(
            voice_id=new_voice_id(),
            name=name,
            description=description,
            labels=dict(labels or {}),
            created_at_unix=int(datetime.now(UTC).timestamp()),
            duration_s=round(len(samples) / sample_rate, 3),
            sample_rate=sample_rate,
            expires_s=expires_s,
            reference=report.described(),
        )
        await asyncio.to_thread(self.voices.add, record, samples, sample_rate)
        try:
            await asyncio.to_thread(self.voices.save_features, record.voice_id, self.backend.fingerprint, voice)
        except NotStored:  # the caller is told so, and never learns the voice's id
            await asyncio.to_thread(self.voices.delete, record.voice_id)
            raise
        return record, warnings

    async def convert(
        self,
        voice_id: str,
        upload: AsyncIterator[bytes],
        *,
        output_format: str = DEFAULT_OUTPUT_FORMAT,
        seed: int | None = None,
        steps: int | None = None,
        file_format: str = "other",
        live: bool = False,
        streaming: bool = False,
        place: Place | None = None,
        remove_noise: bool = False,
    ) -> Conversion:
        """A conversion that runs while it is entered; the voice is known to exist and its features are made.

        `place` is that of the upload.
        """
        fmt = OUTPUT_FORMATS.get(output_format)
        if fmt is None:
            message = f"unknown output format {output_format!r}; allowed are {', '.join(OUTPUT_FORMATS)}"
            raise InvalidFields([FieldProblem(("query", "output_format"), message, "enum")])
        await self.make_features(voice_id)
        seed = secrets.randbits(32) if seed is None else seed
        if live:
            open_stream = partial(self.backend.open_live, voice_id, seed=seed, steps=steps)
        else:
            open_stream = partial(self.backend.open_file, voice_id, seed=seed, steps=steps, streaming=streaming)
        sound = Decoded(upload, file_format, self.limits.max_source_s)
        return Conversion(sound, open_stream, fmt, seed, self.admitted(place), remove_noise)

    @property
    def running_conversions(self) -> int:
        """How many places for conversions are taken."""
        return len(self._running)

    @property
    def is_full(self) -> bool:
        """Whether one more conversion would be refused."""
        return self.running_conversions >= self.limits.max_conversions

    def require_room(self) -> None:
        """AtCapacity where one more conversion would be refused; asked before an upload is taken."""
        if self.is_full and self._slowest() is None:
            message = f"{self.limits.max_conversions} conversions are running, which is the limit; try again soon"
            raise AtCapacity(message, self.limits.retry_after_s, "too_many_concurrent_requests")

    @contextmanager
    def admitted(self, place: Place | None = None) -> Iterator[None]:
        """Room for one more conversion, or AtCapacity; one whose upload at `place` hardly comes may lose it again."""
        self.require_room()
        if len(self._running) >= self.limits.max_conversions and (slowest := self._slowest()) is not None:
            slowest.give_up()
            self._running = {key: place for key, place in self._running.items() if place is not slowest}
        admission = object()
        self._running[admission] = place
        try:
            yield
        finally:
            self._running.pop(admission, None)

    def _slowest(self) -> Place | None:
        """The upload whose conversion makes room where that is needed."""
        return slowest_of(place for place in self._running.values() if place is not None)

    @asynccontextmanager
    async def using(self, voice_id: str) -> AsyncIterator[None]:
        """Keeps a voice that would be forgotten, for as long as something is done with it."""
        self._in_use[voice_id] += 1
        try:
            yield
        finally:
            self._in_use[voice_id] -= 1
            self._in_use += Counter()  # drops what nothing uses

    async def tend_voices(self, in_calls: Iterable[str]) -> None:
        """Renews the voices that are in use, and forgets those whose time is over; called every TEND_EVERY_S."""
        for voice_id in {*in_calls, *self._in_use}:
            with suppress(VoiceNotFound, InvalidVoiceId):  # deleted, or never there
                await asyncio.to_thread(self.voices.renew, voice_id)
        await asyncio.to_thread(self.voices.sweep)

    async def make_features(self, voice_id: str) -> None:
        """Makes sure that the store has the voice's features: a premade voice, or new weights, may lack them."""
        fingerprint = self.backend.fingerprint
        lock = self._feature_locks.setdefault(voice_id, asyncio.Lock())
        async with lock:
            if await asyncio.to_thread(self.voices.features, voice_id, fingerprint) is None:
                samples, sample_rate = await asyncio.to_thread(self.voices.reference, voice_id)
                voice, _, _ = await self.backend.make_voice(samples, sample_rate)
                await asyncio.to_thread(self.voices.save_features, voice_id, fingerprint, voice)

    async def _reference(self, files: Sequence[AsyncIterator[bytes] | bytes]) -> tuple[Samples, int, list[str]]:
        """The recordings as one, at the rate of the first, as far as speech is looked for; and warnings.

        A file of a few kilobytes may claim two minutes at 384 kHz: what no voice is made of goes as it comes.
        """
        enough_s = SEARCHED_S
        warnings: list[str] = []
        pieces: list[Samples] = []
        rate, taken_s = 0, 0.0
        for file in files:
            sound = Decoded(one_piece(file) if isinstance(file, bytes) else file)
            resampler: soxr.ResampleStream | None = None
            async with aclosing(sound.pieces()) as source:
                async for samples, own_rate in source:
                    rate = rate or min(own_rate, _MAX_REFERENCE_HZ)
                    if own_rate != rate:
                        resampler = resampler or soxr.ResampleStream(own_rate, rate, 1)
                        pieces.append(await in_thread(resampler.resample_chunk, samples))
                    else:
                        pieces.append(samples)
                    taken_s += len(samples) / own_rate
                    if taken_s > enough_s:
                        break
            if resampler is not None:
                pieces.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            warnings += sound.warnings
            if taken_s > enough_s:
                break
        return np.concatenate(pieces), rate, warnings


async def one_piece(data: bytes) -> AsyncIterator[bytes]:
    """An upload that is already here."""
    yield data
