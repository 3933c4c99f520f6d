"""Makes voices of references, keeps their features, and forgets voices that nothing uses."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
import soxr

from configs.serve import Limits
from serve_app.callers.ring import OPERATOR, Caller
from serve_app.decoders import LENGTH_TOLERANCE_S, Decoded
from serve_app.errors import AtCapacity, InvalidVoiceId, NotStored, StoreAway, VoiceIsShared, VoiceNotFound
from serve_app.threads import computed
from serve_app.voices.store import VoiceRecord, VoiceStore, as_stored, new_voice_id
from stages.denoise import without_noise
from stages.reference import SEARCHED_S, ReferenceReport, check_reference, spoken
from stages.types import BadAudio, Samples, StoredVoice, Voice

log = logging.getLogger("seedvc.voices")

_REFERENCES_AT_ONCE = 2
"""References that are decoded at once, in up to 200 MB each. `max_conversions` bounds conversions."""
_REFERENCES_WAITING = 16
_MAX_REFERENCE_HZ = 48_000
TEND_EVERY_S = 15.0
LEAST_EXPIRY_S = 60
"""Long enough for a use to begin, and for two renewals."""
MOST_EXPIRY_S = 86400


class Maker(Protocol):
    """Who makes features: the networks in this process, or their replicas behind Serve handles."""

    @property
    def fingerprint(self) -> str:
        """Names the weights that make a voice's features."""

    async def make_voice(self, samples: Samples, sample_rate: int) -> tuple[Voice, list[str], ReferenceReport]:
        """Features of a reference, warnings, and how good it is; BadAudio where it cannot serve as one."""


class Voices:
    """Adds voices to a store and makes their features, within limits."""

    def __init__(self, store: VoiceStore, maker: Maker, limits: Limits) -> None:
        self.store, self.maker, self.limits = store, maker, limits
        self._in_use: Counter[str] = Counter()
        self._feature_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._adding = 0
        self._preparing_references = asyncio.Semaphore(_REFERENCES_AT_ONCE)

    @property
    def fingerprint(self) -> str:
        """Names the weights that make features now."""
        return self.maker.fingerprint

    async def found(self, voice_id: str, caller: Caller) -> VoiceRecord:
        """The record of a voice; VoiceNotFound where this caller may not know of it."""
        record = await asyncio.to_thread(self.store.get, voice_id)
        if not caller.sees(record.owner):
            raise VoiceNotFound(voice_id)
        return record

    async def own(self, voice_id: str, caller: Caller) -> VoiceRecord:
        """The same; VoiceIsShared where this caller may use it but not change it."""
        record = await self.found(voice_id, caller)
        if record.category != "premade" and not caller.owns(record.owner):
            raise VoiceIsShared(voice_id)
        return record

    async def listed(self, caller: Caller) -> list[VoiceRecord]:
        """All voices that are there for this caller."""
        return [record for record in await asyncio.to_thread(self.store.list) if caller.sees(record.owner)]

    async def count_own(self, caller: Caller) -> int:
        """How many voices this caller has; all are the operator's."""
        records = await asyncio.to_thread(self.store.list)
        return sum(record.category == "cloned" and caller.owns(record.owner) for record in records)

    async def add(
        self,
        name: str,
        files: Sequence[AsyncIterator[bytes] | bytes],
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        expires_s: int | None = None,
        remove_noise: bool = False,
        caller: Caller = OPERATOR,
        consent: str | None = None,
    ) -> tuple[VoiceRecord, list[str]]:
        """Makes a voice from one or more recordings, joined in their order, and keeps it; also returns warnings."""
        if self._adding >= _REFERENCES_WAITING:
            message = f"{self._adding} voices are being added, which is the limit; try again soon"
            raise AtCapacity(message, self.limits.retry_after_s, "too_many_concurrent_requests")
        self._adding += 1
        try:
            async with caller.adding_voice(partial(self.count_own, caller)):
                async with self._preparing_references:
                    samples, sample_rate, warnings = await self._reference(files)
                    samples, sample_rate, more = await self._prepared(samples, sample_rate, remove_noise)
                record = VoiceRecord(
                    voice_id=new_voice_id(),
                    name=name,
                    description=description,
                    labels=dict(labels or {}),
                    expires_s=expires_s,
                    owner=caller.key_id,
                    consent=None if consent is None else {"statement": consent, "at_unix": _now_unix()},
                )
                record, told = await self._keep(record, samples, sample_rate)
        finally:
            self._adding -= 1
        return record, [*warnings, *more, *told]

    async def add_samples(self, name: str, samples: Samples, sample_rate: int) -> tuple[VoiceRecord, list[str]]:
        """Makes a voice from samples that are already decoded, and keeps it; also returns warnings."""
        async with self._preparing_references:
            samples, sample_rate, warnings = await self._prepared(samples, sample_rate)
        record, told = await self._keep(VoiceRecord(new_voice_id(), name), samples, sample_rate)
        return record, [*warnings, *told]

    async def _prepared(
        self, samples: Samples, sample_rate: int, remove_noise: bool = False
    ) -> tuple[Samples, int, list[str]]:
        """The samples that a voice is made of, as the store keeps them, their rate, and warnings."""
        limit_s = self.limits.max_reference_s
        warnings: list[str] = []
        if len(samples) > (limit_s + LENGTH_TOLERANCE_S) * sample_rate:
            samples, sample_rate, warnings = await computed(spoken, samples, sample_rate, limit_s)
        samples = samples[: round(limit_s * sample_rate)]
        if remove_noise:
            samples = await computed(without_noise, samples, sample_rate)
        samples = as_stored(samples)
        if len(samples) < self.limits.min_reference_s * sample_rate:
            got_s = len(samples) / sample_rate
            message = f"the reference is {got_s:.2f} s long; at least {self.limits.min_reference_s:g} s are needed"
            raise BadAudio("too_short", message)
        await computed(check_reference, samples, sample_rate)  # here: Serve logs what a replica refuses as its failure
        return samples, sample_rate, warnings

    async def _keep(self, record: VoiceRecord, samples: Samples, sample_rate: int) -> tuple[VoiceRecord, list[str]]:
        """Keeps a new voice, and returns its whole record and warnings."""
        voice, warnings, report = await self.maker.make_voice(samples, sample_rate)
        record = replace(
            record,
            created_at_unix=_now_unix(),
            duration_s=round(len(samples) / sample_rate, 3),
            sample_rate=sample_rate,
            reference=report.described(),
        )
        await asyncio.to_thread(self.store.add, record, samples, sample_rate)
        try:
            await asyncio.to_thread(self.store.save_features, record.voice_id, self.fingerprint, voice)
        except StoreAway:
            log.warning("the features of the voice %s are not stored; they are made again when needed", record.voice_id)
        except NotStored:  # the caller gets the error, and never the voice's id
            await asyncio.to_thread(self.store.delete, record.voice_id)
            raise
        return record, warnings

    async def make_features(self, voice_id: str, caller: Caller = OPERATOR) -> StoredVoice:
        """The voice as streams take it. Makes its features where a premade voice, or new weights, lack them."""
        if caller.key_id is not None:
            await self.found(voice_id, caller)
        fingerprint = self.fingerprint
        lock = self._feature_locks.setdefault(voice_id, asyncio.Lock())
        async with lock:
            voice = await asyncio.to_thread(self.store.features, voice_id, fingerprint)
            if voice is None:
                samples, sample_rate = await asyncio.to_thread(self.store.reference, voice_id)
                voice, _, _ = await self.maker.make_voice(samples, sample_rate)
                await asyncio.to_thread(self.store.save_features, voice_id, fingerprint, voice)
        return StoredVoice(voice_id, voice.file_frames)

    @asynccontextmanager
    async def using(self, voice_id: str) -> AsyncIterator[None]:
        """Keeps a voice that would be forgotten while the context is open."""
        self._in_use[voice_id] += 1
        try:
            yield
        finally:
            self._in_use[voice_id] -= 1
            self._in_use += Counter()  # drops voices with a count of zero

    async def tend(self, in_calls: Iterable[str]) -> None:
        """Renews the voices that are in use, and forgets those whose time is over; called every TEND_EVERY_S."""
        for voice_id in {*in_calls, *self._in_use}:
            with suppress(VoiceNotFound, InvalidVoiceId):  # deleted, or never there
                await asyncio.to_thread(self.store.renew, voice_id)
        await asyncio.to_thread(self.store.sweep)

    async def _reference(self, files: Sequence[AsyncIterator[bytes] | bytes]) -> tuple[Samples, int, list[str]]:
        """Joins the recordings at the rate of the first, as far as speech is searched; also returns warnings.

        A file of a few kilobytes may claim two minutes at 384 kHz, so rates above 48 kHz are reduced as samples come.
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
                        pieces.append(await computed(resampler.resample_chunk, samples))
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


def _now_unix() -> int:
    return int(datetime.now(UTC).timestamp())


async def one_piece(data: bytes) -> AsyncIterator[bytes]:
    """An upload that is already here."""
    yield data
